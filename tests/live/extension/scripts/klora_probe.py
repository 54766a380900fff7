"""Looks into the WebUI for the live tests: state, faults on order, and a brute-force reference. Not for users."""

import gradio as gr
import psutil
import torch
from fastapi import Body, FastAPI
from klora_probe_lib import acts, watch, webui
from klora_probe_lib.reference import Reference

from modules import script_callbacks, scripts, shared


class Probe:
    """one a WebUI: the endpoints, the callbacks and the script all speak to it"""

    def __init__(self):
        self.functions = watch.functions()
        self.reference = None
        self.report = []
        self.fault = {}
        self.calls = self.rewritten = 0
        self.acting = False
        self.said = None
        self.hook = None
        self.p = self.due = None

    def begin(self, p, request):
        """A job that raised has had no end: undo it here.  Scripts begin with one p, or with copies of it, several times."""
        self.end()
        if not hasattr(p, "klora_probe"):
            self.report = []
        self.p, p.klora_probe = p, True
        self.calls = self.rewritten = 0
        self.said = None
        if request:
            self.reference = Reference(request["content"], request["style"], request.get("settings", {}))

    def aim(self):
        if "fail" in self.fault:
            self.hook = webui.denoiser().register_forward_pre_hook(self.before_unet)

    def end(self):
        if self.reference is not None:
            self.reference.restore()
            self.report = [*self.report, *self.reference.report()]
            self.reference = None
        self.disarm()
        self.write_no_more()

    def disarm(self):
        if self.hook is not None:
            self.hook.remove()
            self.hook = None

    def write_no_more(self):
        if self.due is not None:
            self.due.remove()
            self.due = None

    def before_unet(self, module, arguments):
        self.calls += 1
        if self.calls == self.fault["fail"]:
            self.disarm()
            self.fault = {}
            raise RuntimeError("the probe was told to fail here")

    def before_call(self, params):
        if self.acting:  # a job of our own within the job
            return
        if "fail" not in self.fault:
            self.calls += 1
            for order, act in (("interrupt", shared.state.interrupt), ("skip", shared.state.skip)):
                if self.fault.get(order) == self.calls:
                    self.fault = {}
                    act()
            if self.fault.get("rewrite") == self.calls:
                self.fault = {}
                self.rewritten = webui.rewrite()
            if self.fault.get("at") == self.calls:
                name, arguments = self.fault["act"], self.fault["arguments"]
                self.fault = {}
                self.act(name, arguments)
        if self.reference is not None and self.ours(params.denoiser.p):
            self.write_at_the_forward(params)

    def ours(self, p):
        """Not so what ADetailer draws within the job, unless it has our script begin for it."""
        return p is self.p or not getattr(p, "_ad_inner", False)

    def write_at_the_forward(self, params):
        """After everybody's callbacks: another extension's may change what the WebUI then merges."""

        def write(module, arguments):
            self.write_no_more()
            self.reference.write(params)

        self.write_no_more()
        self.due = webui.denoiser().register_forward_pre_hook(write)

    def act(self, name, arguments):
        self.acting = True
        try:
            self.said = acts.ACTS[name](*arguments)
        finally:
            self.acting = False

    def after_call(self, params):
        if self.acting:
            return
        if self.reference is not None:
            self.reference.restore()


PROBE = Probe()


class ProbeScript(scripts.Script):
    def title(self):
        return "K-LoRA probe"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Textbox(visible=False)]

    def before_process(self, p, request):
        # img2img encodes its picture with noise from this generator, which no seed of the job sets; whoever draws
        # from it during the job still shows
        torch.manual_seed(0)
        PROBE.begin(p, request)

    def process(self, p, request):
        PROBE.aim()

    def postprocess(self, p, processed, request):
        PROBE.end()


def add_endpoints(_: gr.Blocks, app: FastAPI):
    @app.get("/klora-probe/state")
    def state():
        return watch.state(PROBE.functions)

    @app.get("/klora-probe/weights")
    def weights():
        return watch.weights()

    @app.get("/klora-probe/memory")
    def memory():
        return {"rss": psutil.Process().memory_info().rss}

    @app.get("/klora-probe/reference")
    def reference():
        return PROBE.report

    @app.get("/klora-probe/job")
    def job():
        return {"calls": PROBE.calls, "rewritten": PROBE.rewritten, "said": PROBE.said}

    @app.post("/klora-probe/arm")
    def arm(fault: dict = Body(...)):  # noqa: B008
        PROBE.fault = fault
        return fault

    @app.post("/klora-probe/config")
    def config(changes: dict = Body(...)):  # noqa: B008
        """What a Forge's denoiser says of its own widths; answers with what it said before."""
        said = webui.denoiser().config
        before = {name: said[name] for name in changes}
        said.update(changes)
        return before

    @app.post("/klora-probe/restart")
    def restart():
        shared.state.request_restart()
        return {}


script_callbacks.on_app_started(add_endpoints)
script_callbacks.on_cfg_denoiser(PROBE.before_call)
script_callbacks.on_cfg_after_cfg(PROBE.after_call)
