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
            if (header instanceof HTMLElement) KLoraAccess.makeButton(header);
        }
    }

    /** @param {HTMLElement} header of the panel or of a box in it, which gradio 3 opens by the mouse alone */
    static makeButton(header) {
        header.setAttribute("role", "button");
        header.tabIndex = 0;
        header.addEventListener("keydown", (event) => {
            if (event.target !== header) return; // the checkbox in the panel's header has its own keys
            if (event.key !== "Enter" && event.key !== " ") return;
            event.preventDefault();
            header.click();
        });
    }
}
