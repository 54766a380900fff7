// Dims the panel's fields that the chosen method does not use. klora_lib/webui/panel.py marks each field with CSS classes
// of the methods that use it, from the settings table.
(function () {
    function dim(tab) {
        const method = gradioApp().querySelector(`#script_${tab}_klora_method input`);
        const panel = gradioApp().querySelector(`#script_${tab}_klora_enabled`);
        if (!method || !panel || panel.dataset.kloraMethod === method.value) return;
        panel.dataset.kloraMethod = method.value;
        for (const field of panel.querySelectorAll(".klora-field")) {
            field.classList.toggle("klora-idle", !field.classList.contains(`klora-for-${method.value}`));
        }
    }

    onAfterUiUpdate(() => ["txt2img", "img2img"].forEach(dim));
})();
