// @ts-check
/* What the panel does in the browser. Its components are made in klora_lib/webui; their ids are script_<tab>_klora_<name>. */

/** The panel of one tab. */
class KLoraPanel {
    /** @param {string} tab "txt2img" or "img2img" */
    constructor(tab) {
        this.tab = tab;
        this.waiting = 0; // timer of a second look at the answers
        this.asked = {about: "", times: 0};
        /** @type {Object<string, string> | null} that waits for the next frame */
        this.request = null;
        /** @type {KLoraCheckpoint | undefined} */
        this.ofPage = undefined;
        /** @type {KLoraPickers | undefined} */
        this.ofTab = undefined;
        this.shown = "";
    }

    /** @returns {Document | ShadowRoot} */
    static get root() {
        return /** @type {any} */ (window).gradioApp();
    }

    /**
     * The sentence in the user's language.
     * @param {string} text as in localizations/*.json
     * @param {Object<string, string | number>} [values] for its {names}
     */
    static say(text, values = {}) {
        const said = /** @type {any} */ (window).localization?.[text] ?? text;
        return said.replace(/\{(\w+)\}/g, (/** @type {string} */ all, /** @type {string} */ name) => String(values[name] ?? all));
    }

    /**
     * @param {string} name of a component
     * @returns {HTMLElement | null}
     */
    find(name) {
        return /** @type {HTMLElement | null} */ (KLoraPanel.root.querySelector(`#script_${this.tab}_klora_${name}`));
    }

    /**
     * @param {string} name of a component with a text
     * @returns {HTMLInputElement | HTMLTextAreaElement | null}
     */
    findInput(name) {
        return /** @type {any} */ (this.find(name))?.querySelector("input, textarea") ?? null;
    }

    /** @param {string} name */
    read(name) {
        return this.findInput(name)?.value ?? "";
    }

    /** Whether K-LoRA is switched on. */
    get on() {
        const box = this.find("enabled-visible-checkbox") ?? this.find("enabled-checkbox")?.querySelector("input");
        return box instanceof HTMLInputElement && box.checked;
    }

    /** The page has changed: show what follows from it. Called often, so it does nothing where nothing has changed. */
    update() {
        const panel = this.find("enabled");
        if (!panel) return;
        this.checkAnswers();
        const chosen = [this.pickers.read("content"), this.pickers.read("style"), this.read("method")];
        const shown = JSON.stringify([this.on, ...chosen]);
        if (shown === this.shown) return;
        this.shown = shown;
        this.dim(panel, chosen[2]);
        this.writeTitle(panel, chosen);
        KLoraAccess.prepare(panel);
    }

    /**
     * Fields that the method does not use are dimmed.
     * @param {HTMLElement} panel
     * @param {string} method
     */
    dim(panel, method) {
        for (const field of panel.querySelectorAll(".klora-field")) {
            field.classList.toggle("klora-idle", !field.classList.contains(`klora-for-${method}`));
        }
    }

    /**
     * The accordion's header shows the pair and the method while K-LoRA is on.
     * @param {HTMLElement} panel
     * @param {string[]} chosen content, style, method
     */
    writeTitle(panel, [content, style, method]) {
        const header = panel.querySelector(".label-wrap > span");
        if (!header) return;
        let title = header.querySelector(".klora-title");
        if (!title) {
            title = document.createElement("span");
            title.className = "klora-title";
            header.append(title);
        }
        title.textContent = this.on ? `${content} + ${style} · ${method}` : "";
    }

    // --- the prompt, requests ---

    /** @param {string} word is added to the prompt, unless it is there: not as a part of another word */
    addWord(word) {
        const prompt = /** @type {HTMLTextAreaElement | null} */ (KLoraPanel.root.querySelector(`#${this.tab}_prompt textarea`));
        const part = "[\\p{L}\\p{M}\\p{N}_]", exact = word.replace(/[\^$.*+?()[\]{}|/\\]/g, "\\$&");
        if (!prompt || new RegExp(`(?<!${part})${exact}(?!${part})`, "u").test(prompt.value)) return;
        writeKLora(prompt, prompt.value.trim() ? `${prompt.value.replace(/[,\s]+$/, "")}, ${word}` : word);
    }

    /** Whether what is said under the pickers is about what they hold: a slow answer may come in after a newer one. */
    get answered() {
        const names = ["content", "style"].map((name) => this.read(name));
        const wanted = names.includes("None") || names.includes("") ? "" : names.join("\n");
        const said = ["content_facts", "style_facts", "fit"].map((name) =>
            this.find(name)?.querySelector(".klora-answer")?.getAttribute("data-for") ?? "");
        if (!this.checkpoint.isMeantBy(this.find("fit")?.querySelector(".klora-answer"))) return false;
        return JSON.stringify(said) === JSON.stringify([...names.map((name) => name === "None" ? "" : name), wanted]);
    }

    /** Made when it is needed: its file is loaded after this one. */
    get checkpoint() {
        return this.ofPage ??= new KLoraCheckpoint();
    }

    /** As the checkpoint. */
    get pickers() {
        return this.ofTab ??= new KLoraPickers(this);
    }

    /** What the answers must be about. */
    get about() {
        return [this.read("content"), this.read("style"), this.checkpoint.name].join("\n");
    }

    /** Ask again, later each time and not more than five times, for answers that are about something else. */
    checkAnswers() {
        if (this.waiting || !this.find("ask") || this.answered) return;
        this.waiting = setTimeout(() => {
            this.waiting = 0;
            if (this.answered) return;
            if (this.asked.about !== this.about) this.asked = {about: this.about, times: 0};
            if (document.activeElement?.closest(`#script_${this.tab}_klora_pair`)) this.checkAnswers(); // the user still types
            else if (this.asked.times++ < 5) {
                this.ask({});
                this.checkpoint.noteQuestion();
                this.checkAnswers();
            }
        }, 1500 * 2 ** (this.asked.about === this.about ? this.asked.times : 0));
    }

    /**
     * Ask in the next frame, once for all that is wanted until then: the hidden text holds one request.
     * @param {Object<string, string>} request see pickers.add_requests
     */
    ask(request) {
        const text = this.findInput("ask"), button = this.find("act");
        if (!text || !button) return;
        const waits = this.request !== null;
        this.request = {...this.request, ...request};
        writeKLora(text, JSON.stringify(this.request));
        if (waits) return;
        requestAnimationFrame(() => {
            this.request = null;
            button.click();
        });
    }

    /** Have the list of presets show those that are kept now, whenever it comes into view: another tab can change them too. */
    watchPresets() {
        const list = this.find("preset"), button = this.find("preset_list");
        if (list && button) new IntersectionObserver((seen) => seen[seen.length - 1].isIntersecting && button.click()).observe(list);
    }
}

/**
 * Write into a gradio input as a user does.
 * @param {HTMLInputElement | HTMLTextAreaElement} input
 * @param {string} text
 */
function writeKLora(input, text) {
    input.value = text;
    input.dispatchEvent(new Event("input", {bubbles: true}));
}

/** @type {KLoraPanel[]} of both tabs */
KLoraPanel.all = ["txt2img", "img2img"].map((tab) => new KLoraPanel(tab));

(function () {
    let waiting = false;

    /** All panels, once in the next frame. */
    function updateSoon() {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => {
            waiting = false;
            KLoraPanel.all.forEach((panel) => {
                const changed = panel.checkpoint.hasChanged();
                panel.update();
                if (changed && panel.on) panel.ask({});
            });
        });
    }

    document.addEventListener("click", (event) => {
        setTimeout(updateSoon, 50);
        if (!(event.target instanceof Element)) return;
        const button = /** @type {HTMLElement | null} */ (event.target.closest(".klora-chip"));
        const panel = button && KLoraPanel.all.find((each) => button.closest(`#script_${each.tab}_klora_enabled`));
        if (!button || !panel) return;
        event.preventDefault();
        event.stopPropagation();
        panel.addWord(button.dataset.word ?? "");
    }, true);
    document.addEventListener("input", () => updateSoon(), true);
    /** @type {any} */ (window).onAfterUiUpdate(updateSoon);
    /** @type {any} */ (window).onUiLoaded(() => KLoraPanel.all.forEach((panel) => panel.watchPresets()));
})();
