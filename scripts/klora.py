"""K-LoRA in a WebUI: the always-on script and all callbacks.  What they do is in klora_lib.webui."""

from klora_lib.webui import boot
from modules import script_callbacks, scripts

APP = boot.make_app()


class KLoraScript(scripts.Script):
    def title(self):
        return "K-LoRA"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return boot.make_panel(self, APP)

    def process(self, p, *args):
        APP.begin(p, args)

    def after_extra_networks_activate(self, p, *args, extra_network_data=None, **kwargs):
        APP.take_networks(p, extra_network_data)

    def process_before_every_sampling(self, p, *args, **kwargs):
        APP.prepare_sampling(p)

    def postprocess(self, p, processed, *args):
        APP.finish(p, processed)


boot.register(APP, script_callbacks)
