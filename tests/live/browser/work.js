// An artist's work with the panel: own presets, generate, paste back, a tag, a refusal, a plot, img2img, the settings page.
// node work.js ADDRESS FOLDER CONTENT STYLE
const {choose, given, id, run, seen, shoot, slow, until, value} = require("./browse.js");

const [content, style] = given;

async function fill(page, where, text) {
    await page.locator(`${where} textarea, ${where} input`).first().fill(String(text));
}

/** Types a number beside a slider. */
async function setNumber(page, where, number) {
    await page.locator(`${where} input[type=number]`).fill(String(number));
    await page.locator(`${where} input[type=number]`).press("Tab");
}

const isValue = (page, where, wanted) =>
    until(page, `${where} is ${wanted}`, ([place, number]) => Number(document.querySelector(place)?.value) === number, [`${where} input[type=number]`, wanted]);

async function choosePreset(page, name) {
    await page.locator(`${id("preset")} input`).first().click();
    await page.locator(`${id("preset")} ul li`, {hasText: name}).click();
}

const told = (page, text) =>
    until(page, `the word ${text}`, ([where, wanted]) => document.querySelector(where)?.textContent.includes(wanted), [id("preset_told"), text]);

/** Presses Generate and waits until the page has done it.  Returns the texts under the images: of the last one, and errors. */
async function generate(page) {
    await page.evaluate(() => {
        const log = document.querySelector("#html_log_txt2img");
        window.kloraWasBusy = false;
        window.kloraBusyObserver ??= new MutationObserver(() => {
            window.kloraWasBusy ||= /processing|queue/.test(log.textContent);
        });
        window.kloraBusyObserver.observe(log, {subtree: true, childList: true, characterData: true});
    });
    await page.locator("#txt2img_generate").click();
    await until(page, "an end of the job", () => {
        const text = document.querySelector("#html_log_txt2img").textContent;
        return window.kloraWasBusy && text.includes("Time taken") && !/processing|queue/.test(text);
    });
    const [info, log] = await page.evaluate(() => ["#html_info_txt2img", "#html_log_txt2img"].map((where) => document.querySelector(where)?.textContent ?? ""));
    return {info, log};
}

run({
    async choose(page) {
        await choose(page, "content", content);
        await choose(page, "style", style);
        for (const [name, number] of [["width", 64], ["height", 64], ["steps", 4]]) await setNumber(page, `#txt2img_${name}`, number);
        await fill(page, "#txt2img_prompt", "a dog");
    },
    async keepPreset(page) {
        await setNumber(page, id("balance"), 0.7);
        await page.locator(`${id("presets")} > .label-wrap`).click();
        await page.locator(id("preset_name")).waitFor();
        await fill(page, id("preset_name"), "mine");
        await page.locator(id("preset_save")).click();
        await told(page, "mine");
        await setNumber(page, id("balance"), 0);
        await choosePreset(page, "style-heavy");
        await choosePreset(page, "mine");
        await isValue(page, id("balance"), 0.7);
    },
    async carryPreset(page) {
        await page.locator(id("preset_export")).click();
        await until(page, "the JSON", (where) => document.querySelector(where)?.value.includes("mine"), `${id("preset_json")} textarea`);
        seen.exported = await page.locator(`${id("preset_json")} textarea`).inputValue();
        await page.locator(id("preset_delete")).click();
        await told(page, "Deleted");
        await page.locator(`${id("preset")} input`).first().click();
        seen.presetsAfterDeleting = await page.locator(`${id("preset")} ul li`).allTextContents();
        await page.keyboard.press("Escape");
        await page.locator(id("preset_import")).click();
        await told(page, "Imported");
        await setNumber(page, id("balance"), 0);
        await choosePreset(page, "mine");
        await isValue(page, id("balance"), 0.7);
        await fill(page, id("preset_json"), "{");
        await page.locator(id("preset_import")).click();
        await until(page, "what is wrong", (where) => document.querySelector(where), `${id("preset_told")} .klora-trouble`);
        seen.badPresets = await page.locator(`${id("preset_told")} .klora-trouble`).textContent();
        await shoot(page, "presets");
    },
    async draw(page) {
        const {info, log} = await generate(page);
        [seen.drawn, seen.drawnLog] = [info, log];
        await until(page, "an image", () => document.querySelector("#txt2img_gallery img"));
    },
    async paste(page) {
        await setNumber(page, id("balance"), -1);
        await choose(page, "style", content, content);
        await fill(page, "#txt2img_prompt", "");
        await page.locator("#paste, #txt2img_tools #paste").first().click();
        await isValue(page, id("balance"), 0.7);
        await until(page, "the style", ([where, wanted]) => document.querySelector(where)?.value === wanted, [`${id("style")} input`, style]);
        seen.pasted = [await value(page, "content"), await value(page, "style")];
    },
    async tag(page) {
        await fill(page, "#txt2img_prompt", `a dog <klora:${content}:${style}:1:0.5:balance=0.4>`);
        seen.tagged = (await generate(page)).info;
        await fill(page, "#txt2img_prompt", `a dog <klora:${content}:nobody>`);
        seen.badTag = (await generate(page)).log;
        await fill(page, "#txt2img_prompt", "a dog");
    },
    async refuse(page) {
        await choose(page, "style", content, content);
        seen.refused = (await generate(page)).log;
        await shoot(page, "refused");
        await choose(page, "style", style);
    },
    async plot(page) {
        await page.locator("#script_list input").first().click();
        await page.locator("#script_list ul li", {hasText: "X/Y/Z plot"}).click();
        for (const [axis, label, values] of [["x", "K-LoRA balance", "-1, 0, 1"], ["y", "K-LoRA method", "klora, est, direct"]]) {
            const box = page.locator(`#script_txt2img_xyz_plot_${axis}_type input`).first();
            await box.waitFor();
            await box.click();
            await box.fill(label);
            await page.locator(`#script_txt2img_xyz_plot_${axis}_type ul li`, {hasText: new RegExp(`${label}\\s*$`)}).first().click();
            if (axis === "y") {
                seen.choices = await page.locator(`#script_txt2img_xyz_plot_y_values_dropdown, #script_txt2img_xyz_plot_y_values`).count();
                const csv = page.locator("#script_txt2img_xyz_plot_csv_mode input");
                await csv.check();
            }
            await page.waitForTimeout(500);
            await page.locator(`#script_txt2img_xyz_plot_${axis}_values textarea, #script_txt2img_xyz_plot_${axis}_values input`).first().fill(values);
        }
        const {info, log} = await generate(page);
        [seen.plotted, seen.plotLog] = [info, log];
        seen.plotImages = await page.locator("#txt2img_gallery img").count();
        await shoot(page, "plot");
        await page.locator("#script_list input").first().click();
        await page.locator("#script_list ul li", {hasText: /^\s*(✓\s*)?None\s*$/}).first().click();
    },
    async keyboard(page) {
        await page.locator(`${id("content")} input`).first().focus();
        const met = new Set();
        for (let n = 0; n < 60; n++) {
            await page.keyboard.press("Tab");
            const where = await page.evaluate(() => document.activeElement?.closest("[id^=script_txt2img_klora_]")?.id ?? "");
            met.add(where.replace("script_txt2img_klora_", ""));
        }
        seen.keyboard = [...met];
    },
    async img2img(page) {
        await page.locator("#tabs > .tab-nav > button", {hasText: "img2img"}).click();
        const there = (name) => `#script_img2img_klora_${name}`;
        await page.locator(`${there("enabled")} > .label-wrap`).click();
        for (const [name, lora] of [["content", content], ["style", style]]) {
            await page.locator(`${there(name)} input`).first().click();
            await page.keyboard.type(lora);
            await page.keyboard.press("Enter");
        }
        await until(page, "the map of img2img", (where) => document.querySelector(where)?.hidden === false, `${there("map")} canvas`);
        seen.img2img = await page.evaluate(() => window.kloraMap.maps["script_img2img_klora"].view.map);
        await shoot(page, "img2img");
    },
    async settings(page) {
        await page.locator("#tabs > .tab-nav > button", {hasText: "Settings"}).click();
        await page.locator("#settings > .tab-nav > button, #settings .tab-nav button", {hasText: /^\s*K-LoRA\s*$/}).first().click();
        await page.locator("#setting_klora_map_colours").waitFor();
        seen.settings = await page.locator("#column_settings_klora [id^=setting_klora]").evaluateAll((all) => all.map((each) => each.id));
        await shoot(page, "settings");
    },
    async cost(page) {
        const cdp = await page.context().newCDPSession(page);
        await cdp.send("Profiler.enable");
        await cdp.send("Profiler.setSamplingInterval", {interval: 100});
        await cdp.send("Profiler.start");
        await page.reload({waitUntil: "commit"});
        await until(page, "the panel", (where) => document.querySelector(where), `${id("enabled")}-visible-checkbox`);
        await page.waitForTimeout(4000);
        const {profile} = await cdp.send("Profiler.stop");
        const parents = new Map();
        const nodes = new Map(profile.nodes.map((node) => [node.id, node]));
        for (const node of profile.nodes) for (const child of node.children ?? []) parents.set(child, node.id);
        const isOurs = (number) => {
            for (let at = number; at !== undefined; at = parents.get(at)) if (/klora/.test(nodes.get(at).callFrame.url)) return true;
            return false;
        };
        const ours = new Map(profile.nodes.map(({id: number}) => [number, isOurs(number)]));
        let [mine, all] = [0, 0];
        profile.samples.forEach((number, n) => {
            if (ours.get(number)) mine += profile.timeDeltas[n];
            if (!/^\((idle|root)\)$/.test(nodes.get(number).callFrame.functionName)) all += profile.timeDeltas[n];
        });
        seen.opening = [mine / 1000, all / 1000];
    },
});
