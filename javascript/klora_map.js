// @ts-check
/* The live selection map in the panel: asks klora_lib/webui/live.py what the panel's values do; klora_map_view.js draws the
   answer. Which LoRA acts where is computed there alone. klora.js is loaded before this file. */

const KLORA_MAP_AGAIN = 5000; // milliseconds after a refusal: its file may be mended or added meanwhile

/**
 * @typedef {object} Excuse Why there is no map.
 * @property {string} [refused] a sentence
 * @property {boolean} [final] whether it is refused as long as this page is shown
 * @property {number} [progress] of reading and scoring, from 0 to 1
 * @property {boolean} [drawing] whether a job runs, which has the first right to the processor
 * @property {boolean} [stopped]
 */

/** One map: that of the panel whose elements' ids begin with ``prefix``. */
class KLoraMap {
    /**
     * @param {string} prefix
     * @param {Element} container
     */
    constructor(prefix, container) {
        this.prefix = prefix;
        this.tab = /img2img/.test(prefix) ? "img2img" : "txt2img";
        /** @type {unknown[] | null} */ this.values = null;
        this.key = "";
        this.visible = false;
        this.asking = false;
        this.stopped = ""; // the request whose answer the user did not want to wait for
        this.asked = ""; // the request that was answered last
        this.again = 0; // when it is sent once more, by the page's clock; Infinity: only after a change
        this.timer = 0;
        this.root = document.createElement("div");
        this.root.className = "klora-map";
        this.root.innerHTML = `
            <div class="klora-map-wait" hidden><progress max="1"></progress> <span></span> <button type="button"></button></div>
            <canvas tabindex="0" role="img" hidden></canvas>
            <p class="klora-map-told" aria-live="polite"></p>
            <div class="klora-map-legend"></div>
            <p class="klora-map-sentence" role="status"></p>`;
        this.root.tabIndex = -1; // takes the focus of what is hidden
        const find = (/** @type {string} */ what) => /** @type {HTMLElement} */ (this.root.querySelector(what));
        this.sentence = find(".klora-map-sentence");
        this.wait = find(".klora-map-wait");
        this.bar = /** @type {HTMLProgressElement} */ (find("progress"));
        this.bar.setAttribute("aria-label", KLoraPanel.say("Reading and comparing the two LoRAs"));
        this.waitText = find(".klora-map-wait span");
        this.cancel = /** @type {HTMLButtonElement} */ (find("button"));
        this.cancel.textContent = KLoraPanel.say("Cancel");
        this.cancel.addEventListener("click", () => this.stop());
        this.view = new KLoraMapView(this.root);
        container.append(this.root);
        // a closed accordion and another tab do not show the map: then nothing is asked
        new IntersectionObserver((seen) => this.show(seen[seen.length - 1].isIntersecting), { rootMargin: "300px" }).observe(this.root);
    }

    // --- what is asked ---

    /** @param {boolean} visible */
    show(visible) {
        this.visible = visible;
        clearInterval(this.timer);
        if (!visible) return;
        this.asked = "";
        this.timer = window.setInterval(() => this.ask(), 400); // steps, strength and seed are the WebUI's own, without events
        this.requestValues();
    }

    requestValues() {
        const button = document.getElementById(`${this.prefix}_map_values`);
        if (button) button.click();
    }

    /** @param {unknown[]} values of the panel, in the order of the settings */
    take(values) {
        this.values = values;
        this.ask();
    }

    /**
     * A number of the WebUI's own.
     * @param {string} name
     * @param {number} otherwise
     */
    read(name, otherwise) {
        const box = document.getElementById(`${this.tab}_${name}`);
        const field = box && /** @type {HTMLInputElement | null} */ (box.querySelector("input[type=number]") || box.querySelector("input"));
        const value = field ? parseFloat(field.value) : NaN;
        return Number.isFinite(value) ? value : otherwise;
    }

    /** What to ask for; null if there is nothing to ask. */
    write() {
        const [enabled, content, style] = this.values || [];
        const chosen = [content, style].every((name) => name && name !== "None");
        if (!enabled || !chosen) return null;
        const seed = this.read("seed", 0);
        return {
            values: this.values,
            steps: Math.min(Math.max(Math.round(this.read("steps", 20)), 1), 1000),
            denoising: this.tab === "img2img" ? Math.min(Math.max(this.read("denoising_strength", 1), 0), 1) : 1,
            seed: Number.isSafeInteger(seed) && seed >= 0 ? seed : 0,
        };
    }

    /** Ask for what is on the panel now.  One request at a time: when it is answered, the latest is asked for. */
    async ask() {
        const request = this.write(), written = JSON.stringify(request);
        if (!request) {
            this.asked = this.stopped = "";
            this.clear();
            return;
        }
        if (!this.visible || this.asking || written === this.stopped) return;
        if (written === this.asked && performance.now() < this.again) return;
        this.asking = true;
        this.asked = this.stopped = "";
        /** @type {Excuse | (MapAnswer & Excuse)} */
        let answer = { refused: KLoraPanel.say("The WebUI does not answer.") };
        try {
            answer = await this.send({ ...request, known: this.key });
        } catch {
            // said by the answer above
        }
        this.asking = false;
        if (this.stopped || answer.stopped) return;
        this.receive(answer);
        if (answer.progress !== undefined) return;
        this.asked = written;
        this.again = answer.refused === undefined || answer.final ? Infinity : performance.now() + KLORA_MAP_AGAIN;
        this.ask();
    }

    /**
     * @param {object} body
     * @returns {Promise<MapAnswer & Excuse>}
     */
    async send(body) {
        const answer = await fetch(new URL("klora/panel/map", document.baseURI), {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify(body),
        });
        if (answer.status === 404) return /** @type {any} */ ({ refused: KLoraPanel.say("This WebUI cannot show the map."), final: true });
        if (answer.status === 401) return /** @type {any} */ ({ refused: KLoraPanel.say("Log in again to see the map.") });
        if (!answer.ok) throw new Error(String(answer.status));
        return answer.json();
    }

    /** The user does not want to wait. */
    async stop() {
        const request = this.write();
        this.stopped = JSON.stringify(request);
        this.showWait(false);
        this.sentence.textContent = KLoraPanel.say("Cancelled: change a value to see the map.");
        try {
            await this.send({ ...request, stop: true });
        } catch {
            // it ends by itself, as nobody asks any more
        }
    }

    // --- what is shown ---

    clear() {
        if (!this.view.map && !this.sentence.textContent && this.wait.hidden) return;
        this.view.clear();
        this.showWait(false);
        this.sentence.textContent = "";
    }

    /** @param {boolean} shown whether the bar and its button are; their focus is not lost with them */
    showWait(shown) {
        if (!shown && this.wait.contains(document.activeElement)) this.root.focus({ preventScroll: true });
        this.wait.hidden = !shown;
    }

    /** @param {Excuse | (MapAnswer & Excuse)} answer */
    receive(answer) {
        this.showWait(answer.progress !== undefined);
        this.root.classList.toggle("klora-map-old", answer.refused !== undefined || answer.progress !== undefined);
        if (answer.progress !== undefined) {
            this.bar.value = answer.progress;
            this.waitText.textContent = answer.drawing
                ? KLoraPanel.say("Comparing the two LoRAs, slowly while an image is drawn")
                : KLoraPanel.say("Comparing the two LoRAs");
            return;
        }
        this.sentence.classList.toggle("klora-map-refused", answer.refused !== undefined);
        if (answer.refused !== undefined) {
            if (this.sentence.textContent !== answer.refused) this.sentence.textContent = answer.refused; // it is read out
            return;
        }
        this.accept(/** @type {MapAnswer} */ (answer));
    }

    /** @param {MapAnswer} answer */
    accept(answer) {
        this.key = answer.key;
        const text = [answer.sentence, ...answer.notes].map((each) => `${each.charAt(0).toUpperCase()}${each.slice(1)}.`).join(" ");
        this.sentence.textContent = text;
        this.view.show(answer, text);
        this.root.dispatchEvent(new CustomEvent("klora-map-drawn", { bubbles: true }));
    }
}

(function () {
    /** @type {Record<string, KLoraMap>} */ const maps = {};
    /** What klora_lib/webui/map_panel.py calls with a panel's values. The promise never ends: at its end gradio would look
     * for outputs, of which there are none, and draw its whole page anew, which takes longer than the map. */
    /** @type {any} */ (window).kloraMap = {
        maps,
        take(/** @type {string} */ prefix, /** @type {unknown[]} */ values) {
            if (maps[prefix]) maps[prefix].take(values);
            return new Promise(() => {});
        },
    };
    /** @type {any} */ (window).onUiLoaded(() => {
        for (const tab of ["txt2img", "img2img"]) {
            const prefix = `script_${tab}_klora`;
            const container = document.getElementById(`${prefix}_map`);
            if (container) maps[prefix] = new KLoraMap(prefix, container);
        }
    });
})();
