// @ts-check
/* What the panel does in the browser. Its components are made in klora_lib/webui; their ids are script_<tab>_klora_<name>. */

/** The panel of one tab. */
class KLoraPanel {
    /** @param {string} tab "txt2img" or "img2img" */
    constructor(tab) {
        this.tab = tab;
        /** @type {Object<string, string>} what each picker held when it was entered */
        this.before = {};
        this.taking = false; // gradio is about to take an option of the list
        /** @type {HTMLInputElement | null} a picker that was just entered, whose text is not selected yet */
        this.entered = null;
        this.waiting = 0; // timer of a second look at the answers
        this.asked = {about: "", times: 0};
        /** @type {KLoraCheckpoint | undefined} */
        this.ofPage = undefined;
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
        return Object.entries(values).reduce((all, [name, value]) => all.replace(`{${name}}`, () => String(value)), said);
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
        const chosen = ["content", "style", "method"].map((name) => this.read(name));
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

    // --- the pickers ---

    /**
     * The picker that an element is in.
     * @param {EventTarget | null} target
     */
    findPicker(target) {
        if (!(target instanceof HTMLInputElement)) return null;
        return ["content", "style"].find((name) => this.find(name)?.contains(target)) ?? null;
    }

    /** @param {string} picker @returns {string[]} the names in its open list */
    listOptions(picker) {
        return Array.from(this.find(picker)?.querySelectorAll("ul li") ?? [], (option) => option.getAttribute("aria-label") ?? "");
    }

    /**
     * A picker is entered: its text is selected, so that the first key begins a search.
     * @param {string} picker
     * @param {HTMLInputElement} input
     */
    enter(picker, input) {
        this.before[picker] = input.value;
        this.taking = false;
        this.tell(picker, "");
        this.entered = input;
        requestAnimationFrame(() => this.select()); // not at once: the click that enters it puts the cursor into the text
    }

    /** Select the text of the picker that was just entered: in the next frame, or before a key that comes earlier. */
    select() {
        this.entered?.select();
        this.entered = null;
    }

    /**
     * A picker is left: what is not in its list is taken back, and this is said.
     * @param {string} picker
     * @param {HTMLInputElement} input
     */
    leave(picker, input) {
        this.entered = null;
        const typed = input.value, before = this.before[picker] ?? "None";
        if (this.taking || typed === before || this.listOptions(picker).includes(typed)) return;
        writeKLora(input, before); // gradio's own handler comes after this one
        if (typed.trim()) {
            this.tell(picker, KLoraPanel.say('There is no LoRA named "{typed}" in the list; "{before}" stays chosen.', {typed, before}));
        }
    }

    /**
     * Enter takes the first that was found, in gradio 4 too.
     * @param {string} picker
     * @param {HTMLInputElement} input
     */
    takeFirst(picker, input) {
        const found = this.find(picker)?.querySelectorAll("ul li") ?? [];
        this.taking = found.length > 0;
        if (!found.length || this.listOptions(picker).includes(input.value) || this.find(picker)?.querySelector("ul li.active")) return;
        input.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}));
    }

    /**
     * @param {string} picker
     * @param {string} sentence under the picker; empty for none
     */
    tell(picker, sentence) {
        const facts = this.find(`${picker}_facts`);
        let said = facts?.parentElement?.querySelector(".klora-said");
        if (!said && facts && sentence) {
            said = document.createElement("div");
            said.className = "klora-said";
            said.setAttribute("role", "status");
            facts.before(said);
        }
        if (said) said.textContent = sentence;
    }

    // --- the prompt, requests ---

    /** @param {string} word is added to the prompt, unless it is there */
    addWord(word) {
        const prompt = /** @type {HTMLTextAreaElement | null} */ (KLoraPanel.root.querySelector(`#${this.tab}_prompt textarea`));
        if (!prompt || prompt.value.split(",").some((part) => part.trim() === word) || prompt.value.includes(word)) return;
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
                this.checkAnswers();
            }
        }, 1500 * 2 ** (this.asked.about === this.about ? this.asked.times : 0));
    }

    /** @param {Object<string, string>} request see pickers.add_requests */
    ask(request) {
        const text = this.findInput("ask"), button = this.find("act");
        if (!text || !button) return;
        writeKLora(text, JSON.stringify(request));
        requestAnimationFrame(() => button.click());
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
                panel.update();
                if (panel.checkpoint.hasChanged() && panel.on) panel.ask({});
            });
        });
    }

    /**
     * Act on the picker that an event comes from.
     * @param {Event} event
     * @param {(panel: KLoraPanel, picker: string, input: HTMLInputElement) => void} act
     */
    function onPicker(event, act) {
        for (const panel of KLoraPanel.all) {
            const picker = panel.findPicker(event.target);
            if (picker) act(panel, picker, /** @type {HTMLInputElement} */ (event.target));
        }
    }

    // all on the way down, so that they come before gradio's own
    document.addEventListener("focus", (event) => onPicker(event, (panel, picker, input) => panel.enter(picker, input)), true);
    document.addEventListener("blur", (event) => onPicker(event, (panel, picker, input) => panel.leave(picker, input)), true);
    document.addEventListener("keydown", (event) => {
        onPicker(event, (panel) => panel.select());
        if (event.key === "Enter") onPicker(event, (panel, picker, input) => panel.takeFirst(picker, input));
    }, true);
    document.addEventListener("mousedown", (event) => {
        if (!(event.target instanceof Element) || !event.target.closest("ul.options")) return;
        for (const panel of KLoraPanel.all) panel.taking = true;
    }, true);
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
})();
