// @ts-check
/* How the live selection map looks, and what it tells of a layer. What is in it comes from klora_lib/map/describe.py. */

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

/** @typedef {{left: number, right: number, width: number, height: number, curve: number, axis: number, tops: number[][]}} Places */

const KLORA_LETTERS = "NCSB"; // none, content, style, both

/** The map's canvas, the line that tells of one layer, and the legend. */
class KLoraMapView {
    /** @param {HTMLElement} root their parent */
    constructor(root) {
        /** @type {MapAnswer | null} */ this.map = null;
        /** @type {Layers | null} */ this.layers = null;
        /** @type {Places | null} */ this.at = null;
        this.row = -1; // that is told of; -1: none
        this.step = 0;
        this.frame = 0;
        this.small = document.createElement("canvas");
        this.root = root;
        this.canvas = /** @type {HTMLCanvasElement} */ (root.querySelector("canvas"));
        this.told = /** @type {HTMLElement} */ (root.querySelector(".klora-map-told"));
        this.legend = /** @type {HTMLElement} */ (root.querySelector(".klora-map-legend"));
        this.canvas.addEventListener("pointermove", (e) => this.point(e));
        this.canvas.addEventListener("pointerleave", () => this.select(-1, this.step));
        this.canvas.addEventListener("keydown", (e) => this.press(e));
        this.canvas.addEventListener("focus", () => this.select(Math.max(this.row, 0), this.step));
        this.canvas.addEventListener("blur", () => this.select(-1, this.step));
        new ResizeObserver(() => this.draw()).observe(root);
        new MutationObserver(() => this.draw()).observe(document.body, { attributes: true, attributeFilter: ["class"] });
    }

    clear() {
        this.map = null;
        this.canvas.hidden = true;
        this.told.textContent = this.legend.textContent = "";
    }

    /**
     * @param {MapAnswer} map
     * @param {string} text what it says, for who does not see it
     */
    show(map, text) {
        if (map.layers) this.layers = map.layers;
        this.map = map;
        this.canvas.hidden = false;
        this.canvas.setAttribute("aria-label", `${KLoraPanel.say("Selection map: arrow keys tell of a layer at a step.")} ${text}`);
        this.row = Math.min(this.row, map.rows.length - 1);
        this.step = Math.min(this.step, map.steps - 1);
        this.showLegend(map);
        this.told.textContent = this.tell(this.row, this.step);
        this.draw();
    }

    /** @param {MapAnswer} map */
    showLegend(map) {
        const used = new Set(`${map.patterns.join("")}CS`);
        const shown = Object.entries(KLoraMapWords.names())
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
        this.told.textContent = this.tell(row, step);
        cancelAnimationFrame(this.frame);
        this.frame = requestAnimationFrame(() => this.draw());
    }

    /**
     * @param {number} row
     * @param {number} step
     */
    tell(row, step) {
        return row < 0 || !this.map || !this.layers ? "" : KLoraMapWords.describe(this.map, this.layers, row, step);
    }
}
