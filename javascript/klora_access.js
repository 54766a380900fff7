// @ts-check
/* What the keyboard and screen readers need of the panel, where gradio and the WebUI leave it out. */

class KLoraAccess {
    /** @param {HTMLElement} panel of one tab; what it has already is left as it is */
    static prepare(panel) {
        panel.querySelector('[id$="_klora_enabled-visible-checkbox"]')?.setAttribute("aria-label", "K-LoRA");
        for (const input of panel.querySelectorAll("input[type=number]:not([aria-label])")) {
            const label = input.closest(".block")?.querySelector("label > span, span[data-testid=block-info]");
            input.setAttribute("aria-label", label?.textContent?.trim() ?? "");
        }
        for (const header of panel.querySelectorAll(".label-wrap:not(button, [role])")) {
            // the panel's own header has a checkbox, which opens it
            if (header instanceof HTMLElement && header.parentElement !== panel) KLoraAccess.makeButton(header);
        }
    }

    /** @param {HTMLElement} header of a box in the panel, which gradio 3 opens by the mouse alone */
    static makeButton(header) {
        header.setAttribute("role", "button");
        header.tabIndex = 0;
        header.addEventListener("keydown", (event) => {
            if (event.key !== "Enter" && event.key !== " ") return;
            event.preventDefault();
            header.click();
        });
    }
}
