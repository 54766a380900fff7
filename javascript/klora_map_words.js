// @ts-check
/* What the live selection map says in words; klora_map_view.js shows it. */

class KLoraMapWords {
    /**
     * Of what acts, by its letter in a pattern.
     * @returns {Record<string, string>}
     */
    static names() {
        return {
            N: KLoraPanel.say("neither acts"),
            C: KLoraPanel.say("content acts"),
            S: KLoraPanel.say("style acts"),
            B: KLoraPanel.say("both act"),
        };
    }

    /**
     * Of a layer at a step.
     * @param {MapAnswer} map
     * @param {Layers} layers
     * @param {number} row
     * @param {number} step
     */
    static describe(map, layers, row, step) {
        const names = this.names();
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
