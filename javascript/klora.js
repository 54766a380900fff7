// The panel's behaviour: what the chosen method does not look at is dimmed. Which field serves which method is written
// into the page by klora_lib/webui/panel.py, from the settings table.
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
