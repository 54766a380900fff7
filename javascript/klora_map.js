// @ts-check
/* The live selection map in the panel: asks klora_lib/webui/live.py what the panel's values do, and draws the answer.
   Which LoRA acts where is computed there alone; here is only what a person sees of it. klora.js comes before this file. */

/**
 * @typedef {object} Layers What does not depend on the settings.
 * @property {string[]} names of the rows' layers
 * @property {[string, number, number][]} groups title, first row, row after the last
 * @property {number[]} content_ranks
 * @property {number[]} style_ranks
 */

/**
 * @typedef {object} MapAnswer A map.
 * @property {number} steps
 * @property {string[]} patterns one letter a step: C, S, B (both), N (none)
 * @property {number[]} rows the pattern of each row
 * @property {number[]} choice 1 where the method chooses
 * @property {(number | null)[]} ratios
 * @property {number[]} share of the style at each step
 * @property {number} gamma
 * @property {string[]} colours none, content, style, both
 * @property {string[]} pale the same where there is no choice
 * @property {string} axis
 * @property {string} sentence
 * @property {string[]} notes
 * @property {string} key
 * @property {Layers | null} layers null where the page has those of this key
 */

/**
 * @typedef {object} Excuse Why there is no map.
 * @property {string} [refused] a sentence
 * @property {number} [progress] of reading and scoring, from 0 to 1
 * @property {boolean} [drawing] whether a job runs, which has the first right to the processor
 * @property {boolean} [stopped]
 */

/** @typedef {{left: number, right: number, width: number, height: number, curve: number, axis: number, tops: number[][]}} Places */

const KLORA_LETTERS = "NCSB";

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
        /** @type {MapAnswer | null} */ this.map = null;
        /** @type {Layers | null} */ this.layers = null;
        this.key = "";
        this.visible = false;
        this.asking = false;
        this.stopped = false; // the user did not want to wait
        this.asked = ""; // the request that was answered last
        this.row = -1;
        this.step = 0;
        this.timer = 0;
        this.frame = 0;
        this.small = document.createElement("canvas");
        /** @type {Places | null} */ this.at = null;
        this.root = document.createElement("div");
        this.root.className = "klora-map";
        this.root.innerHTML = `
            <div class="klora-map-wait" hidden><progress max="1"></progress> <span></span> <button type="button"></button></div>
            <canvas tabindex="0" role="img" hidden></canvas>
            <p class="klora-map-told" aria-live="polite"></p>
            <div class="klora-map-legend"></div>
            <p class="klora-map-sentence" role="status"></p>`;
        const find = (/** @type {string} */ what) => /** @type {HTMLElement} */ (this.root.querySelector(what));
        this.sentence = find(".klora-map-sentence");
        this.wait = find(".klora-map-wait");
        this.bar = /** @type {HTMLProgressElement} */ (find("progress"));
        this.bar.setAttribute("aria-label", KLoraPanel.say("Reading and comparing the two LoRAs"));
        this.waitText = find(".klora-map-wait span");
        this.cancel = /** @type {HTMLButtonElement} */ (find("button"));
        this.canvas = /** @type {HTMLCanvasElement} */ (find("canvas"));
        this.told = find(".klora-map-told");
        this.legend = find(".klora-map-legend");
        this.cancel.textContent = KLoraPanel.say("Cancel");
        this.cancel.addEventListener("click", () => this.stop());
        this.canvas.addEventListener("pointermove", (e) => this.point(e));
        this.canvas.addEventListener("pointerleave", () => this.select(-1, this.step));
        this.canvas.addEventListener("keydown", (e) => this.press(e));
        this.canvas.addEventListener("focus", () => this.select(Math.max(this.row, 0), this.step));
        this.canvas.addEventListener("blur", () => this.select(-1, this.step));
        container.append(this.root);
        // a closed accordion and another tab do not show the map: then nothing is asked
        new IntersectionObserver((seen) => this.show(seen[seen.length - 1].isIntersecting), { rootMargin: "300px" }).observe(this.root);
        new ResizeObserver(() => this.draw()).observe(this.root);
        new MutationObserver(() => this.draw()).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    }

    // --- what is asked ---

    /** @param {boolean} visible */
    show(visible) {
        this.visible = visible;
        clearInterval(this.timer);
        if (!visible) return;
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
        this.stopped = false;
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

    /** The body of a request; empty if there is nothing to ask. */
    write() {
        const [enabled, content, style] = this.values || [];
        const chosen = [content, style].every((name) => name && name !== "None");
        if (!enabled || !chosen) return "";
        const seed = this.read("seed", 0);
        return JSON.stringify({
            values: this.values,
            steps: Math.min(Math.max(Math.round(this.read("steps", 20)), 1), 1000),
            denoising: this.tab === "img2img" ? Math.min(Math.max(this.read("denoising_strength", 1), 0), 1) : 1,
            seed: Number.isSafeInteger(seed) && seed >= 0 ? seed : 0,
        });
    }

    /** Ask for what is on the panel now.  One request at a time: when it is answered, the latest is asked for. */
    async ask() {
        const body = this.write();
        if (!body) {
            this.asked = "";
            this.clear();
            return;
        }
        if (!this.visible || this.asking || this.stopped || body === this.asked) return;
        this.asking = true;
        try {
            const answer = await this.send({ ...JSON.parse(body), known: this.layers ? this.key : "" });
            if (answer.progress === undefined && !answer.stopped) this.asked = body;
            this.receive(answer);
        } catch {
            this.asked = body;
            this.receive({ refused: KLoraPanel.say("The WebUI does not answer.") });
        } finally {
            this.asking = false;
        }
        if (this.write() !== this.asked && this.asked === body) this.ask();
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
        if (answer.status === 401) return /** @type {any} */ ({ refused: KLoraPanel.say("Log in again to see the map.") });
        if (!answer.ok) throw new Error(String(answer.status));
        return answer.json();
    }

    /** The user does not want to wait. */
    async stop() {
        this.stopped = true;
        this.wait.hidden = true;
        this.sentence.textContent = KLoraPanel.say("Cancelled: change a value to see the map.");
        try {
            await this.send({ ...JSON.parse(this.write() || "{}"), stop: true });
        } catch {
            // it ends by itself, as nobody asks any more
        }
    }

    // --- what is shown ---

    clear() {
        if (!this.map && !this.sentence.textContent && this.wait.hidden) return;
        this.map = null;
        this.canvas.hidden = this.wait.hidden = true;
        this.sentence.textContent = this.told.textContent = this.legend.textContent = "";
    }

    /** @param {Excuse | (MapAnswer & Excuse)} answer */
    receive(answer) {
        if (this.stopped || answer.stopped) return;
        this.wait.hidden = answer.progress === undefined;
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
            this.sentence.textContent = answer.refused;
            return;
        }
        this.accept(/** @type {MapAnswer} */ (answer));
    }

    /** @param {MapAnswer} answer */
    accept(answer) {
        if (answer.layers) [this.layers, this.key] = [answer.layers, answer.key];
        this.map = answer;
        this.canvas.hidden = false;
        const text = [answer.sentence, ...answer.notes].map((each) => `${each.charAt(0).toUpperCase()}${each.slice(1)}.`).join(" ");
        this.sentence.textContent = text;
        this.canvas.setAttribute("aria-label", `${KLoraPanel.say("Selection map: arrow keys tell of a layer at a step.")} ${text}`);
        this.row = Math.min(this.row, answer.rows.length - 1);
        this.step = Math.min(this.step, answer.steps - 1);
        this.showLegend(answer);
        if (this.row >= 0) this.told.textContent = this.describe(this.row, this.step);
        this.draw();
        this.root.dispatchEvent(new CustomEvent("klora-map-drawn", { bubbles: true }));
    }

    /** @param {MapAnswer} map */
    showLegend(map) {
        const used = new Set(`${map.patterns.join("")}CS`);
        const shown = [
            ["N", KLoraPanel.say("neither acts")],
            ["C", KLoraPanel.say("content acts")],
            ["S", KLoraPanel.say("style acts")],
            ["B", KLoraPanel.say("both act")],
        ]
            .filter(([letter]) => used.has(letter))
            .map(([letter, name]) => [map.colours[KLORA_LETTERS.indexOf(letter)], name]);
        if (map.choice.includes(0)) shown.push([map.pale[1], KLoraPanel.say("paler: no choice there")]);
        this.legend.replaceChildren(
            ...shown.map(([colour, name]) => {
                const item = document.createElement("span");
                const patch = document.createElement("i");
                patch.style.background = colour;
                item.append(patch, name);
                return item;
            }),
        );
    }

    /**
     * Where everything is, in CSS pixels.
     * @param {MapAnswer} map
     * @param {Layers} layers
     * @returns {Places}
     */
    place(map, layers) {
        const width = Math.max(this.root.clientWidth, 260);
        const rows = map.rows.length;
        const groups = layers.groups;
        const few = groups.length <= 24;
        const row = Math.max(Math.min(400 / rows, 14), 0.4);
        const gap = few ? 3 : 1;
        let y = 18;
        const tops = groups.map(([, start, stop]) => {
            const height = Math.max((stop - start) * row, few ? 11 : 3);
            const top = y;
            y += height + gap;
            return [top, height];
        });
        const left = 84;
        return { width, left, right: width - 12, tops, curve: y + 18, axis: y + 18 + 56, height: y + 18 + 56 + 36 };
    }

    draw() {
        const [map, layers, pen] = [this.map, this.layers, this.canvas.getContext("2d")];
        if (!map || !layers || !pen || this.canvas.hidden || !this.root.clientWidth) return;
        const at = (this.at = this.place(map, layers));
        const ratio = window.devicePixelRatio || 1;
        const canvas = this.canvas;
        canvas.width = Math.round(at.width * ratio);
        canvas.height = Math.round(at.height * ratio);
        canvas.style.width = `${at.width}px`;
        canvas.style.height = `${at.height}px`;
        const style = getComputedStyle(this.root);
        pen.scale(ratio, ratio);
        pen.font = `11px ${style.fontFamily}`;
        pen.fillStyle = style.color;
        pen.textBaseline = "middle";
        pen.fillText(KLoraPanel.say("Layers, by block"), 0, 7);
        this.drawGroups(pen, layers, at);
        this.drawCells(pen, ratio, map, layers, at);
        const cell = (at.right - at.left) / map.steps;
        pen.textAlign = "left";
        pen.fillText(KLoraPanel.say("Share of style"), at.left, at.curve - 8);
        pen.textAlign = "right";
        pen.fillText("100 %", at.left - 5, at.curve + 3);
        pen.fillText("0 %", at.left - 5, at.axis - 4);
        pen.strokeStyle = style.color;
        pen.globalAlpha = 0.35;
        pen.strokeRect(at.left, at.curve, at.right - at.left, at.axis - at.curve);
        pen.globalAlpha = 1;
        pen.fillStyle = map.colours[2];
        map.share.forEach((share, t) => {
            const height = (at.axis - at.curve) * share;
            const [first, after] = [t, t + 1].map((n) => Math.round((at.left + n * cell) * ratio) / ratio);
            pen.fillRect(first, at.axis - height, after - first, height);
        });
        pen.fillStyle = style.color;
        pen.textAlign = "center";
        const each = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * cell >= 26) || 500;
        for (let t = 1; t <= map.steps; t += t === 1 && each > 1 ? each - 1 : each) {
            if (t === 1 || (t - 1) * cell >= 18) pen.fillText(String(t), at.left + (t - 0.5) * cell, at.axis + 9);
        }
        pen.fillText(map.axis ? KLoraPanel.say("Progress from noise to image") : KLoraPanel.say("Sampling step"), (at.left + at.right) / 2, at.axis + 24);
        if (this.row >= 0) this.drawCursor(pen, style.color, cell, layers, at);
    }

    /**
     * @param {CanvasRenderingContext2D} pen
     * @param {Layers} layers
     * @param {Places} at
     */
    drawGroups(pen, layers, at) {
        pen.textAlign = "right";
        let last = -Infinity;
        layers.groups.forEach(([title], i) => {
            const [top, height] = at.tops[i];
            const y = top + height / 2;
            if (y - last < 11) return;
            last = y;
            pen.fillText(title.length > 14 ? `${title.slice(0, 13)}…` : title, at.left - 5, y);
        });
    }

    /**
     * Where several rows share a line of pixels, their colours are mixed.
     * @param {CanvasRenderingContext2D} pen
     * @param {number} ratio
     * @param {MapAnswer} map
     * @param {Layers} layers
     * @param {Places} at
     */
    drawCells(pen, ratio, map, layers, at) {
        const steps = map.steps;
        const numbers = map.patterns.map((text) => [...text].map((letter) => KLORA_LETTERS.indexOf(letter)));
        const parts = (/** @type {string} */ colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
        const colours = [map.pale.map(parts), map.colours.map(parts)];
        pen.imageSmoothingEnabled = false;
        layers.groups.forEach(([, start, stop], g) => {
            const [top, height] = at.tops[g];
            const lines = Math.max(Math.round(height * ratio), 1);
            const picture = new ImageData(steps, lines);
            for (let y = 0; y < lines; y++) {
                const first = start + Math.floor((y * (stop - start)) / lines);
                const after = Math.max(start + Math.floor(((y + 1) * (stop - start)) / lines), first + 1);
                for (let t = 0; t < steps; t++) {
                    const place = 4 * (y * steps + t);
                    let [red, green, blue] = [0, 0, 0];
                    for (let row = first; row < after; row++) {
                        const colour = colours[map.choice[row]][numbers[map.rows[row]][t]];
                        red += colour[0];
                        green += colour[1];
                        blue += colour[2];
                    }
                    picture.data[place] = red / (after - first);
                    picture.data[place + 1] = green / (after - first);
                    picture.data[place + 2] = blue / (after - first);
                    picture.data[place + 3] = 255;
                }
            }
            [this.small.width, this.small.height] = [steps, lines];
            this.small.getContext("2d")?.putImageData(picture, 0, 0);
            pen.drawImage(this.small, at.left, top, at.right - at.left, height);
        });
    }

    /**
     * @param {CanvasRenderingContext2D} pen
     * @param {string} colour
     * @param {number} cell
     * @param {Layers} layers
     * @param {Places} at
     */
    drawCursor(pen, colour, cell, layers, at) {
        const g = layers.groups.findIndex(([, start, stop]) => start <= this.row && this.row < stop);
        const [, start, stop] = layers.groups[g];
        const [top, height] = at.tops[g];
        const row = height / (stop - start);
        pen.strokeStyle = colour;
        pen.lineWidth = 1.5;
        const y = top + (this.row - start) * row;
        const tall = Math.max(row, 3);
        pen.strokeRect(at.left - 1, y - (tall - row) / 2 - 1, at.right - at.left + 2, tall + 2);
        pen.strokeRect(at.left + this.step * cell, at.curve, cell, at.axis - at.curve);
    }

    // --- one layer ---

    /** @param {PointerEvent} e */
    point(e) {
        const [map, layers, at] = [this.map, this.layers, this.at];
        if (!map || !layers || !at) return;
        const step = Math.floor(((e.offsetX - at.left) / (at.right - at.left)) * map.steps);
        const g = at.tops.findIndex(([top, height]) => top <= e.offsetY && e.offsetY < top + height);
        if (g < 0 || step < 0 || step >= map.steps) {
            this.select(-1, this.step);
            return;
        }
        const [, start, stop] = layers.groups[g];
        const [top, height] = at.tops[g];
        this.select(start + Math.floor(((e.offsetY - top) / height) * (stop - start)), step);
    }

    /** @param {KeyboardEvent} e */
    press(e) {
        if (!this.map) return;
        const [rows, steps] = [this.map.rows.length, this.map.steps];
        /** @type {Record<string, [number, number]>} */
        const moves = {
            ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1],
            PageDown: [10, 0], PageUp: [-10, 0], Home: [-rows, 0], End: [rows, 0],
        };
        if (!(e.key in moves)) return;
        e.preventDefault();
        const within = (/** @type {number} */ x, /** @type {number} */ most) => Math.min(Math.max(x, 0), most - 1);
        this.select(within(this.row + moves[e.key][0], rows), within(this.step + moves[e.key][1], steps));
    }

    /**
     * Tell of a layer at a step; of none if ``row`` is below 0.
     * @param {number} row
     * @param {number} step
     */
    select(row, step) {
        if (!this.map || (row === this.row && step === this.step)) return;
        [this.row, this.step] = [row, step];
        this.told.textContent = row < 0 ? "" : this.describe(row, step);
        cancelAnimationFrame(this.frame);
        this.frame = requestAnimationFrame(() => this.draw());
    }

    /**
     * What is told of a layer at a step.
     * @param {number} row
     * @param {number} step
     */
    describe(row, step) {
        const [map, layers] = [this.map, this.layers];
        if (!map || !layers) return "";
        /** @type {Record<string, string>} */
        const names = {
            N: KLoraPanel.say("neither acts"), C: KLoraPanel.say("content acts"), S: KLoraPanel.say("style acts"), B: KLoraPanel.say("both act"),
        };
        const pattern = map.patterns[map.rows[row]];
        const [content, style, ratio] = [layers.content_ranks[row], layers.style_ranks[row], map.ratios[row]];
        const [one, two] = [content, style].map((rank) => rank || "–");
        const said = [layers.names[row], KLoraPanel.say("ranks {content} and {style}", { content: one, style: two })];
        if (ratio !== null) said.push(`S_c / (γ·S_s) = ${ratio}`);
        if (!content) said.push(KLoraPanel.say("only the style has this layer"));
        else if (!style) said.push(KLoraPanel.say("only the content has this layer"));
        else if (!map.choice[row]) said.push(KLoraPanel.say("no choice in this layer"));
        said.push(KLoraPanel.say("step {step}: {name}", { step: step + 1, name: names[pattern[step]] }));
        const turns = [...pattern].map((letter, t) => [letter, t]).filter(([letter, t]) => t && letter !== pattern[Number(t) - 1]);
        if (!turns.length) said.push(KLoraPanel.say("never switches"));
        else if (turns.length > 4) said.push(KLoraPanel.say("switches {times} times", { times: turns.length }));
        for (const [letter, t] of turns.length > 4 ? [] : turns) {
            said.push(KLoraPanel.say("{name} from step {step}", { name: names[letter], step: Number(t) + 1 }));
        }
        return said.join(" · ");
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
