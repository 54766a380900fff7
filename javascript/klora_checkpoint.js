// @ts-check
/* The checkpoint that is chosen at the top of the page, and whether the check of the pair is about it. */

class KLoraCheckpoint {
    constructor() {
        this.seen = "";
        this.changed = false; // and the WebUI has not told yet that the new one is loaded
    }

    /** @returns {string} the name that the checkpoint's file has without folder, ending and hash; empty if the list is not shown */
    get name() {
        const list = /** @type {HTMLInputElement | null} */ (KLoraPanel.root.querySelector("#setting_sd_model_checkpoint input"));
        return (list?.value ?? "").replace(/ \[[^\]]*\]$/, "").replace(/^.*[\\/]/, "").replace(/\.\w+$/, "");
    }

    /** @returns {boolean} whether another one was chosen since the last call; the first one is no other */
    hasChanged() {
        const before = this.seen, name = this.name;
        this.seen = name;
        if (!before || name === before) return false;
        return this.changed = true;
    }

    /**
     * Whether an answer is about the chosen checkpoint: the WebUI loads it while it answers for the old one.
     * @param {Element | null | undefined} answer
     */
    isMeantBy(answer) {
        const model = answer?.getAttribute("data-model") ?? null;
        if (model === null || !this.name) return true;
        if (model === this.name) this.changed = false;
        return !this.changed;
    }
}
