// @ts-check
/* What the panel does in the browser. Its components are made in klora_lib/webui; their ids are script_<tab>_klora_<name>. */

/** Globals of the WebUI's page; `localization` is there only where a language is chosen.
 * @typedef {{gradioApp: () => Document | ShadowRoot, onAfterUiUpdate: (act: () => void) => void,
 *            localization?: Object<string, string>}} Page */

/** The panel of one tab. */
class KLoraPanel {
    /** @param {string} tab "txt2img" or "img2img" */
    constructor(tab) {
        this.tab = tab;
        /** @type {Object<string, string>} what each picker held when it was entered */
        this.before = {};
        this.taking = false; // gradio is about to take an option of the list
        this.shown = "";
        this.checkpoint = "";
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
        this.markCards();
        const chosen = ["content", "style", "method"].map((name) => this.read(name));
        const shown = JSON.stringify([this.on, ...chosen]);
        if (shown === this.shown) return;
        this.shown = shown;
        this.dim(panel, chosen[2]);
        this.writeTitle(panel, chosen);
        this.labelInputs(panel);
        for (const card of this.listCards(".klora-card")) this.pressButton(card);
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

    /**
     * Inputs that gradio and the WebUI leave without a label get one: the numbers of sliders, the header's checkbox.
     * @param {HTMLElement} panel
     */
    labelInputs(panel) {
        this.find("enabled-visible-checkbox")?.setAttribute("aria-label", "K-LoRA");
        for (const input of panel.querySelectorAll("input[type=number]:not([aria-label])")) {
            const label = input.closest(".block")?.querySelector("label > span, span[data-testid=block-info]");
            input.setAttribute("aria-label", label?.textContent?.trim() ?? "");
        }
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
        requestAnimationFrame(() => input.select());
    }

    /**
     * A picker is left: what is not in its list is taken back, and this is said.
     * @param {string} picker
     * @param {HTMLInputElement} input
     */
    leave(picker, input) {
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
        const names = this.listOptions(picker);
        this.taking = found.length > 0;
        if (!found.length || names.includes(input.value) || this.find(picker)?.querySelector("ul li.active")) return;
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

    // --- the prompt, the cards ---

    /** @param {string} word is added to the prompt, unless it is there */
    addWord(word) {
        const prompt = /** @type {HTMLTextAreaElement | null} */ (KLoraPanel.root.querySelector(`#${this.tab}_prompt textarea`));
        if (!prompt || prompt.value.split(",").some((part) => part.trim() === word) || prompt.value.includes(word)) return;
        writeKLora(prompt, prompt.value.trim() ? `${prompt.value.replace(/[,\s]+$/, "")}, ${word}` : word);
    }

    /** @param {string} selector @returns {NodeListOf<HTMLElement>} of the LoRA cards, or in them */
    listCards(selector) {
        return KLoraPanel.root.querySelectorAll(`#${this.tab}_lora_cards ${selector}`);
    }

    /** Put the two buttons on the cards that have none: all of them after a refresh. */
    markCards() {
        for (const row of this.listCards(".card > .button-row:not([data-klora])")) {
            row.dataset.klora = "";
            for (const [role, letter] of [["style", "S"], ["content", "C"]]) {
                const button = document.createElement("button");
                button.type = "button";
                button.className = "klora-card";
                button.dataset.role = role;
                button.textContent = letter;
                button.title = KLoraPanel.say(role === "content" ? "Content of K-LoRA" : "Style of K-LoRA");
                button.setAttribute("aria-label", button.title);
                row.prepend(button);
                this.pressButton(button);
            }
        }
    }

    /** @param {HTMLElement} button shows whether its card is chosen */
    pressButton(button) {
        const name = button.closest(".card")?.getAttribute("data-name");
        const pressed = name === this.read(button.dataset.role ?? "");
        if (button.getAttribute("aria-pressed") !== String(pressed)) button.setAttribute("aria-pressed", String(pressed));
    }

    /** @param {HTMLElement} button of a card that was pressed */
    chooseCard(button) {
        const name = button.closest(".card")?.getAttribute("data-name");
        if (name) this.ask({[button.dataset.role ?? ""]: name});
    }

    /** @param {Object<string, string>} request see pickers.add_requests */
    ask(request) {
        const text = this.findInput("ask"), button = this.find("act");
        if (!text || !button) return;
        writeKLora(text, JSON.stringify(request));
        requestAnimationFrame(() => button.click());
    }

    /** Another checkpoint may not fit the pair. */
    watchCheckpoint() {
        const field = /** @type {HTMLInputElement | null} */ (KLoraPanel.root.querySelector("#setting_sd_model_checkpoint input"));
        const name = field?.value ?? "";
        if (name === this.checkpoint) return;
        const first = this.checkpoint === "";
        this.checkpoint = name;
        if (!first && this.on) this.ask({});
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

(function () {
    const panels = ["txt2img", "img2img"].map((tab) => new KLoraPanel(tab));
    let waiting = false;

    /** All panels, once in the next frame. */
    function updateSoon() {
        if (waiting) return;
        waiting = true;
        requestAnimationFrame(() => {
            waiting = false;
            panels.forEach((panel) => {
                panel.update();
                panel.watchCheckpoint();
            });
        });
    }

    /**
     * Act on the picker that an event comes from.
     * @param {Event} event
     * @param {(panel: KLoraPanel, picker: string, input: HTMLInputElement) => void} act
     */
    function onPicker(event, act) {
        for (const panel of panels) {
            const picker = panel.findPicker(event.target);
            if (picker) act(panel, picker, /** @type {HTMLInputElement} */ (event.target));
        }
    }

    // all on the way down, so that they come before gradio's and the cards' own
    document.addEventListener("focus", (event) => onPicker(event, (panel, picker, input) => panel.enter(picker, input)), true);
    document.addEventListener("blur", (event) => onPicker(event, (panel, picker, input) => panel.leave(picker, input)), true);
    document.addEventListener("keydown", (event) => {
        if (event.key === "Enter") onPicker(event, (panel, picker, input) => panel.takeFirst(picker, input));
    }, true);
    document.addEventListener("mousedown", (event) => {
        if (!(event.target instanceof Element) || !event.target.closest("ul.options")) return;
        for (const panel of panels) panel.taking = true;
    }, true);
    document.addEventListener("click", (event) => {
        setTimeout(updateSoon, 50);
        if (!(event.target instanceof Element)) return;
        const button = /** @type {HTMLElement | null} */ (event.target.closest(".klora-card, .klora-chip"));
        const panel = button && panels.find((each) => button.closest(`#${each.tab}_lora_cards, #script_${each.tab}_klora_enabled`));
        if (!button || !panel) return;
        event.preventDefault();
        event.stopPropagation();
        if (button.matches(".klora-card")) panel.chooseCard(button);
        else panel.addWord(button.dataset.word ?? "");
    }, true);
    document.addEventListener("input", () => updateSoon(), true);
    /** @type {any} */ (window).onAfterUiUpdate(updateSoon);
})();
