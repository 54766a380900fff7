// @ts-check
/* The buttons C and S on the LoRA cards, which choose a card's LoRA in the panel of the same tab. */

/** The cards of one tab. */
class KLoraCards {
    /** @param {KLoraPanel} panel of the tab */
    constructor(panel) {
        this.panel = panel;
        this.shown = "";
    }

    /** The page has changed: new cards get their buttons, and the buttons show what is chosen. */
    update() {
        this.mark();
        const shown = JSON.stringify(["content", "style"].map((name) => this.panel.pickers.read(name)));
        if (shown === this.shown) return;
        this.shown = shown;
        for (const button of this.list(".klora-card")) this.press(button);
    }

    /** @param {string} selector @returns {NodeListOf<HTMLElement>} of the cards, or in them */
    list(selector) {
        return KLoraPanel.root.querySelectorAll(`#${this.panel.tab}_lora_cards ${selector}`);
    }

    /** Put the two buttons on the cards that have none: all of them after a refresh. */
    mark() {
        for (const row of this.list(".card > .button-row:not([data-klora])")) {
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
                this.press(button);
            }
        }
    }

    /** @param {HTMLElement} button shows whether its card is chosen */
    press(button) {
        const name = button.closest(".card")?.getAttribute("data-name");
        const pressed = name === this.panel.pickers.read(button.dataset.role ?? "");
        if (button.getAttribute("aria-pressed") !== String(pressed)) button.setAttribute("aria-pressed", String(pressed));
    }

    /** @param {HTMLElement} button of a card that was pressed */
    choose(button) {
        const name = button.closest(".card")?.getAttribute("data-name");
        if (name) this.panel.ask({[button.dataset.role ?? ""]: name});
    }
}

(function () {
    /** @type {KLoraCards[]} */
    let all = []; // made when the page is there: klora.js, which has the panels, may be loaded after this file

    /** Both tabs' cards. */
    function update() {
        if (!all.length) all = KLoraPanel.all.map((panel) => new KLoraCards(panel));
        all.forEach((cards) => cards.update());
    }

    // on the way down, so that it comes before the card's own
    document.addEventListener("click", (event) => {
        const button = event.target instanceof Element && /** @type {HTMLElement | null} */ (event.target.closest(".klora-card"));
        const cards = button && all.find((each) => button.closest(`#${each.panel.tab}_lora_cards`));
        if (!button || !cards) return;
        event.preventDefault();
        event.stopPropagation();
        cards.choose(button);
    }, true);
    /** @type {any} */ (window).onAfterUiUpdate(update);
})();
