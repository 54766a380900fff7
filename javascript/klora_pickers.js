// @ts-check
/* The pickers of content and style: what is typed searches in the list, and only what the list has is chosen.
   klora.js is loaded before this file. */

/** The two pickers of one tab. */
class KLoraPickers {
    /** @param {KLoraPanel} panel of the tab */
    constructor(panel) {
        this.panel = panel;
        /** @type {Object<string, string>} what each picker held when it was entered */
        this.before = {};
        /** @type {Object<string, Set<string>>} all names of each list, as it was when its picker was entered */
        this.names = {};
        this.taking = false; // gradio is about to take an option of the list
        this.again = false; // which was chosen before, too
        this.moved = false; // an arrow key was pressed after the last letter
        /** @type {{picker: string, input: HTMLInputElement} | null} one that was just entered, whose text is not selected yet */
        this.entered = null;
    }

    /**
     * The picker that an element is in.
     * @param {EventTarget | null} target
     */
    find(target) {
        if (!(target instanceof HTMLInputElement)) return null;
        return ["content", "style"].find((name) => this.panel.find(name)?.contains(target)) ?? null;
    }

    /** @param {string} picker @returns {string} the name that is chosen, also while the user types another one */
    read(picker) {
        const input = this.panel.findInput(picker);
        return input && input === document.activeElement ? this.before[picker] ?? input.value : input?.value ?? "";
    }

    /** @param {string} picker @returns {Element[]} the options of its list; none while the list is closed */
    listOptions(picker) {
        return Array.from(this.panel.find(picker)?.querySelectorAll("ul.options li") ?? []);
    }

    /**
     * A picker is entered: its text is selected, so that the first key begins a search.
     * @param {string} picker
     * @param {HTMLInputElement} input
     */
    enter(picker, input) {
        this.before[picker] = input.value;
        this.taking = this.moved = false;
        this.tell(picker, "");
        this.entered = {picker, input};
        requestAnimationFrame(() => this.select()); // not at once: the click that enters it puts the cursor into the text
    }

    /** Select the text of the picker that was just entered: in the next frame, or before a key that comes earlier. */
    select() {
        if (!this.entered) return;
        const {picker, input} = this.entered;
        this.entered = null;
        input.select();
        this.names[picker] = new Set(this.listOptions(picker).map((option) => option.getAttribute("aria-label") ?? ""));
    }

    /** @param {Element} option that gradio is about to take */
    note(option) {
        const picker = ["content", "style"].find((name) => this.panel.find(name)?.contains(option));
        if (!picker) return;
        const name = option.getAttribute("aria-label") ?? "";
        this.taking = true;
        this.again = name === this.before[picker];
        this.before[picker] = name;
    }

    /**
     * A picker is left: a name of its list is taken, anything else is taken back, and this is said.
     * @param {string} picker
     * @param {HTMLInputElement} input
     * @param {Event} event
     */
    leave(picker, input, event) {
        this.entered = null;
        const typed = input.value, before = this.before[picker] ?? "None";
        // if the option was chosen before, too, gradio 4 would take what is typed for its name
        if (this.taking && this.again && typed !== before) writeKLora(input, before);
        if (this.taking || typed === before) return;
        if (this.names[picker]?.has(typed)) {
            event.stopPropagation(); // gradio 3 would empty the picker, as it knows only options that were pressed
            this.take(input, () => this.findTyped(picker, input));
            return;
        }
        writeKLora(input, before); // gradio's own handler comes after this one
        if (typed.trim()) {
            this.tell(picker, KLoraPanel.say('There is no LoRA named "{typed}" in the list; "{before}" stays chosen.', {typed, before}));
        }
    }

    /**
     * Enter takes the option that the arrow keys went to, or the one whose name is typed, or the first that was found.
     * @param {string} picker
     * @param {HTMLInputElement} input
     * @param {KeyboardEvent} event
     */
    accept(picker, input, event) {
        if (event.isComposing) return; // it ends a word of an input method
        event.preventDefault();
        event.stopPropagation(); // gradio 3 would take the first, gradio 4 what is typed
        this.take(input, () => {
            const options = this.listOptions(picker);
            const active = this.moved ? options.find((option) => option.classList.contains("active")) : undefined;
            return active ?? this.findTyped(picker, input) ?? options[0];
        });
    }

    /**
     * The option whose name is typed.
     * @param {string} picker
     * @param {HTMLInputElement} input
     */
    findTyped(picker, input) {
        return this.listOptions(picker).find((option) => option.getAttribute("aria-label") === input.value);
    }

    /**
     * Take an option as the mouse does, which is the same in both gradios.  If there is none, the picker is left.
     * @param {HTMLInputElement} input
     * @param {() => Element | undefined} find the option
     */
    take(input, find) {
        const press = () => {
            const option = find();
            option?.dispatchEvent(new MouseEvent("mousedown", {bubbles: true, cancelable: true}));
            return option;
        };
        if (press()) return;
        // the list is closed, as after Escape: an arrow key opens it, when gradio has drawn it
        input.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowDown", bubbles: true}));
        queueMicrotask(() => press() ?? input.blur());
    }

    /**
     * @param {string} picker
     * @param {string} sentence under the picker; empty for none
     */
    tell(picker, sentence) {
        const facts = this.panel.find(`${picker}_facts`);
        let said = facts?.parentElement?.querySelector(".klora-said");
        if (!said && facts && sentence) {
            said = document.createElement("div");
            said.className = "klora-said";
            said.setAttribute("role", "status");
            facts.before(said);
        }
        if (said) said.textContent = sentence;
    }
}

(function () {
    /**
     * Act on the picker that an event comes from.
     * @param {Event} event
     * @param {(pickers: KLoraPickers, picker: string, input: HTMLInputElement) => void} act
     */
    function onPicker(event, act) {
        for (const {pickers} of KLoraPanel.all) {
            const picker = pickers.find(event.target);
            if (picker) act(pickers, picker, /** @type {HTMLInputElement} */ (event.target));
        }
    }

    // all on the way down, so that they come before gradio's own
    document.addEventListener("focus", (event) => onPicker(event, (pickers, picker, input) => pickers.enter(picker, input)), true);
    document.addEventListener("blur", (event) => onPicker(event, (pickers, picker, input) => pickers.leave(picker, input, event)), true);
    document.addEventListener("keydown", (event) => onPicker(event, (pickers, picker, input) => {
        if (!event.isTrusted) return; // our own
        pickers.select();
        if (event.key === "ArrowDown" || event.key === "ArrowUp") pickers.moved = true;
        if (event.key === "Enter") pickers.accept(picker, input, event);
    }), true);
    document.addEventListener("input", (event) => onPicker(event, (pickers) => {
        pickers.moved = false;
    }), true);
    document.addEventListener("mousedown", (event) => {
        // gradio takes an option when its own element is pressed, not a list's scrollbar
        if (!(event.target instanceof Element) || !event.target.matches("ul.options li")) return;
        for (const {pickers} of KLoraPanel.all) pickers.note(event.target);
    }, true);
})();
