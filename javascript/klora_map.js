// The live selection map in the panel: asks klora_lib/webui/live.py what the panel's values do, and draws the answer.
// Which LoRA acts where is computed there alone; here is only what a person sees of it.

/**
 * @typedef {object} Layers What does not depend on the settings.
 * @property {string[]} names of the rows' layers
 * @property {[string, number, number][]} groups title, first row, row after the last
 * @property {number[]} content_ranks
 * @property {number[]} style_ranks
 */

/**
 * @typedef {object} Answer
 * @property {string} [refused] a sentence
 * @property {number} [progress] of reading and scoring, from 0 to 1
 * @property {boolean} [drawing] whether a job runs, which has the first right to the processor
 * @property {boolean} [stopped]
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
        /** @type {Answer | null} */ this.map = null;
        /** @type {Layers | null} */ this.layers = null;
        this.key = "";
        this.visible = false;
        this.asking = false;
        this.stopped = false; // the user did not want to wait
        this.asked = ""; // the request that was answered last
        this.row = -1;
        this.step = 0;
        this.build(container);
    }

    /** @param {Element} container */
    build(container) {
        this.root = document.createElement("div");
        this.root.className = "klora-map";
        this.root.innerHTML = `
            <p class="klora-map-sentence"></p>
            <div class="klora-map-wait" hidden><progress max="1"></progress> <span></span> <button type="button"></button></div>
            <canvas tabindex="0" role="img" hidden></canvas>
            <p class="klora-map-told" aria-live="polite"></p>
            <div class="klora-map-legend"></div>`;
        const find = (/** @type {string} */ what) => /** @type {HTMLElement} */ (this.root.querySelector(what));
        this.sentence = find(".klora-map-sentence");
        this.wait = find(".klora-map-wait");
        this.bar = /** @type {HTMLProgressElement} */ (find("progress"));
        this.bar.setAttribute("aria-label", this.say("reading and comparing the two LoRAs"));
        this.waitText = find(".klora-map-wait span");
        this.cancel = /** @type {HTMLButtonElement} */ (find("button"));
        this.canvas = /** @type {HTMLCanvasElement} */ (find("canvas"));
        this.told = find(".klora-map-told");
        this.legend = find(".klora-map-legend");
        this.cancel.textContent = this.say("Cancel");
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

    /**
     * In the language of the WebUI.
     * @param {string} text
     */
    say(text) {
        const translate = /** @type {any} */ (window).getTranslation;
        return (typeof translate === "function" && translate(text)) || text;
    }

    // --- what is asked ---

    /** @param {boolean} visible */
    show(visible) {
        this.visible = visible;
        clearInterval(this.timer);
        if (!visible) return;
        this.timer = setInterval(() => this.ask(), 400); // steps, strength and seed are the WebUI's own, without events
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
            /** @type {Answer} */ const answer = await this.send({ ...JSON.parse(body), known: this.layers ? this.key : "" });
            if (answer.progress === undefined && !answer.stopped) this.asked = body;
            this.receive(answer);
        } catch {
            this.receive(/** @type {Answer} */ ({ refused: this.say("the WebUI does not answer") }));
            this.asked = body;
        } finally {
            this.asking = false;
        }
        if (this.write() !== this.asked && this.asked === body) this.ask();
    }

    /** @param {object} body */
    async send(body) {
        const answer = await fetch(new URL("klora/panel/map", document.baseURI), {
            method: "POST",
            headers: { "Content-Type": "application/json" },
            body: JSON.stringify(body),
        });
        if (answer.status === 401) return { refused: this.say("log in again to see the map") };
        if (!answer.ok) throw new Error(String(answer.status));
        return answer.json();
    }

    /** The user does not want to wait. */
    async stop() {
        this.stopped = true;
        this.wait.hidden = true;
        this.sentence.textContent = this.say("Cancelled: change a value to see the map.");
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

    /** @param {Answer} answer */
    receive(answer) {
        if (this.stopped || answer.stopped) return;
        this.wait.hidden = answer.progress === undefined;
        this.root.classList.toggle("klora-map-old", answer.refused !== undefined || answer.progress !== undefined);
        if (answer.progress !== undefined) {
            this.bar.value = answer.progress;
            const text = answer.drawing ? "comparing the two LoRAs, slowly while an image is drawn" : "comparing the two LoRAs";
            this.waitText.textContent = this.say(text);
            return;
        }
        this.sentence.classList.toggle("klora-map-refused", answer.refused !== undefined);
        if (answer.refused !== undefined) {
            this.sentence.textContent = answer.refused;
            return;
        }
        if (answer.layers) [this.layers, this.key] = [answer.layers, answer.key];
        this.map = answer;
        this.canvas.hidden = false;
        const text = [answer.sentence, ...answer.notes].join(". ");
        this.sentence.textContent = `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
        this.canvas.setAttribute("aria-label", `${this.say("Selection map, layers by steps; arrow keys tell of a layer.")} ${text}`);
        this.row = Math.min(this.row, answer.rows.length - 1);
        this.step = Math.min(this.step, answer.steps - 1);
        this.showLegend();
        this.draw();
        this.root.dispatchEvent(new CustomEvent("klora-map-drawn", { bubbles: true }));
    }

    showLegend() {
        const map = this.map;
        const used = new Set(map.patterns.join("") + "CS");
        const names = [["N", "none"], ["C", "content"], ["S", "style"], ["B", "both"]];
        const shown = names.filter(([letter]) => used.has(letter)).map(([letter, name]) => [map.colours[KLORA_LETTERS.indexOf(letter)], name]);
        if (map.choice.includes(0)) shown.push([map.pale[1], "paler: no choice there"]);
        this.legend.replaceChildren(
            ...shown.map(([colour, name]) => {
                const item = document.createElement("span");
                const patch = document.createElement("i");
                patch.style.background = colour;
                item.append(patch, this.say(name));
                return item;
            }),
        );
    }

    /** Where everything is, in CSS pixels. */
    place() {
        const width = Math.max(this.root.clientWidth, 260);
        const rows = this.map.rows.length;
        const groups = this.layers.groups;
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
        return { width, left, right: width - 12, tops, bottom: y, curve: y + 18, axis: y + 18 + 56, height: y + 18 + 56 + 36 };
    }

    draw() {
        if (!this.map || this.canvas.hidden || !this.root.clientWidth) return;
        const map = this.map;
        const at = (this.at = this.place());
        const ratio = window.devicePixelRatio || 1;
        const canvas = this.canvas;
        canvas.width = Math.round(at.width * ratio);
        canvas.height = Math.round(at.height * ratio);
        canvas.style.width = `${at.width}px`;
        canvas.style.height = `${at.height}px`;
        const pen = canvas.getContext("2d");
        const style = getComputedStyle(this.root);
        pen.scale(ratio, ratio);
        pen.font = `11px ${style.fontFamily}`;
        pen.fillStyle = style.color;
        pen.textBaseline = "middle";
        pen.fillText(this.say("layers, by block"), 0, 7);
        this.drawGroups(pen);
        this.drawCells(pen, ratio);
        const cell = (at.right - at.left) / map.steps;
        pen.textAlign = "left";
        pen.fillText(this.say("share of style, of what acts (both: half)"), at.left, at.curve - 8);
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
            pen.fillRect(at.left + t * cell, at.axis - height, Math.ceil(cell * ratio) / ratio, height);
        });
        pen.fillStyle = style.color;
        pen.textAlign = "center";
        const each = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((n) => n * cell >= 26) || 500;
        for (let t = 1; t <= map.steps; t += t === 1 && each > 1 ? each - 1 : each) {
            if (t === 1 || (t - 1) * cell >= 18) pen.fillText(String(t), at.left + (t - 0.5) * cell, at.axis + 9);
        }
        pen.fillText(this.say(map.axis || "sampling step"), (at.left + at.right) / 2, at.axis + 24);
        if (this.row >= 0) this.drawCursor(pen, style.color, cell);
    }

    /** @param {CanvasRenderingContext2D} pen */
    drawGroups(pen) {
        pen.textAlign = "right";
        let last = -Infinity;
        this.layers.groups.forEach(([title], i) => {
            const [top, height] = this.at.tops[i];
            const y = top + height / 2;
            if (y - last < 11) return;
            last = y;
            pen.fillText(title.length > 14 ? `${title.slice(0, 13)}…` : title, this.at.left - 5, y);
        });
    }

    /**
     * Where several rows share a line of pixels, their colours are mixed.
     * @param {CanvasRenderingContext2D} pen
     * @param {number} ratio
     */
    drawCells(pen, ratio) {
        const map = this.map;
        const steps = map.steps;
        const numbers = map.patterns.map((text) => [...text].map((letter) => KLORA_LETTERS.indexOf(letter)));
        const parts = (/** @type {string} */ colour) => [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
        const colours = [map.pale.map(parts), map.colours.map(parts)];
        pen.imageSmoothingEnabled = false;
        this.layers.groups.forEach(([, start, stop], g) => {
            const [top, height] = this.at.tops[g];
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
            const small = this.small || (this.small = document.createElement("canvas"));
            [small.width, small.height] = [steps, lines];
            small.getContext("2d").putImageData(picture, 0, 0);
            pen.drawImage(small, this.at.left, top, this.at.right - this.at.left, height);
        });
    }

    /**
     * @param {CanvasRenderingContext2D} pen
     * @param {string} colour
     * @param {number} cell
     */
    drawCursor(pen, colour, cell) {
        const g = this.layers.groups.findIndex(([, start, stop]) => start <= this.row && this.row < stop);
        const [, start, stop] = this.layers.groups[g];
        const [top, height] = this.at.tops[g];
        const row = height / (stop - start);
        pen.strokeStyle = colour;
        pen.lineWidth = 1.5;
        const y = top + (this.row - start) * row;
        const tall = Math.max(row, 3);
        pen.strokeRect(this.at.left - 1, y - (tall - row) / 2 - 1, this.at.right - this.at.left + 2, tall + 2);
        pen.strokeRect(this.at.left + this.step * cell, this.at.curve, cell, this.at.axis - this.at.curve);
    }

    // --- one layer ---

    /** @param {PointerEvent} e */
    point(e) {
        if (!this.map || !this.at) return;
        const [x, y] = [e.offsetX, e.offsetY];
        const step = Math.floor(((x - this.at.left) / (this.at.right - this.at.left)) * this.map.steps);
        const g = this.at.tops.findIndex(([top, height]) => top <= y && y < top + height);
        const inside = g >= 0 && step >= 0 && step < this.map.steps;
        const [, start, stop] = inside ? this.layers.groups[g] : ["", 0, 0];
        const row = inside ? start + Math.floor(((y - this.at.tops[g][0]) / this.at.tops[g][1]) * (stop - start)) : -1;
        this.select(row, inside ? step : this.step);
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
     * @param {number} row
     * @param {number} step
     */
    describe(row, step) {
        const [map, layers] = [this.map, this.layers];
        const names = { N: this.say("neither"), C: this.say("content"), S: this.say("style"), B: this.say("both") };
        const pattern = map.patterns[map.rows[row]];
        const [content, style] = [layers.content_ranks[row], layers.style_ranks[row]];
        const ranks = `${this.say("ranks")} ${content || "–"} / ${style || "–"}`;
        const turns = [...pattern].flatMap((letter, t) => (t && letter !== pattern[t - 1] ? [`${names[letter]} ${this.say("from step")} ${t + 1}`] : []));
        const said = [layers.names[row], ranks];
        const ratio = map.ratios[row];
        if (ratio !== null) said.push(`S_c / (γ·S_s) = ${ratio}`);
        if (!content || !style) said.push(this.say(content ? "only the content has this layer" : "only the style has this layer"));
        else if (!map.choice[row]) said.push(this.say("no choice in this layer"));
        said.push(`${this.say("step")} ${step + 1}: ${names[pattern[step]]}`);
        said.push(turns.length > 4 ? `${turns.length} ${this.say("switches")}` : turns.join(", ") || this.say("never switches"));
        return said.join(" · ");
    }
}

(function () {
    /** @type {Record<string, KLoraMap>} */ const maps = {};
    /** What klora_lib/webui/map_panel.py calls with a panel's values. */
    /** @type {any} */ (window).kloraMap = {
        maps,
        take(/** @type {string} */ prefix, /** @type {unknown[]} */ values) {
            if (maps[prefix]) maps[prefix].take(values);
        },
    };
    onUiLoaded(() => {
        for (const tab of ["txt2img", "img2img"]) {
            const prefix = `script_${tab}_klora`;
            const container = document.getElementById(`${prefix}_map`);
            if (container) maps[prefix] = new KLoraMap(prefix, container);
        }
    });
})();
