// @ts-check
/* The checkpoint that is chosen at the top of the page, and whether the check of the pair is about it. */

class KLoraCheckpoint {
    constructor() {
        this.seen = "";
        this.changed = false; // and no answer is known to be about the new one yet
    }

    /** @returns {HTMLInputElement | null} A1111's list, which a setting can hide */
    get list() {
        return KLoraPanel.root.querySelector("#setting_sd_model_checkpoint input");
    }

    /** @returns {HTMLInputElement | null} Forge's list: what is chosen there is loaded at the next job, not before */
    get later() {
        return this.list ? null : KLoraPanel.root.querySelector("#quicksettings .model_selection input");
    }

    /** @returns {string} the name that the checkpoint's file has without folder, ending and hash; empty if the list is not shown */
    get name() {
        const list = this.list ?? this.later;
        return (list?.value ?? "").replace(/ \[[^\]]*\]$/, "").replace(/^.*[\\/]/, "").replace(/\.\w+$/, "");
    }

    /** @returns {boolean} whether another one was chosen since the last call, and is being loaded; the first one is no other */
    hasChanged() {
        if ((this.list ?? this.later) === document.activeElement) return false; // the user still types
        const before = this.seen, name = this.name;
        this.seen = name;
        if (!before || name === before) return false;
        this.changed = true;
        return !this.later; // Forge is asked a moment later, when its page has told it what is chosen
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

    /** The page has asked again.  Forge is asked once: it does not load the chosen one while it answers. */
    noteQuestion() {
        if (this.later) this.changed = false;
    }
}
