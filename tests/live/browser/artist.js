// What an artist does: presets, tag, images, paste, hires, img2img, a plot, another checkpoint; a card's buttons by keyboard.
// node artist.js ADDRESS FOLDER CONTENT STYLE OTHER CHECKPOINT IMAGE   (OTHER: a LoRA for another model; CHECKPOINT: for it)
const {choose, given, id, run, seen, shoot, until, value} = require("./browse.js");

const [content, style, other, checkpoint, image] = given;
const box = (tab) => `#script_${tab}_klora_enabled-visible-checkbox`;
const info = (tab) => `#html_info_${tab}`;
const prompt = (page) => page.locator("#txt2img_prompt textarea");
const open = (page, name) => page.locator(`${id(name)} > .label-wrap`).click();

/** Writes a number into a slider's box, as a user who leaves it with Tab. */
async function write(page, where, number) {
    await page.locator(`${where} input[type=number]`).fill(String(number));
    await page.keyboard.press("Tab");
}

async function press(page, name) {
    await page.locator(id(name)).click();
}

/** Presses Generate; returns what is said under the images when that has changed: the infotext, or the refusal. */
async function generate(page, tab = "txt2img") {
    const log = `#html_log_${tab}`;
    await page.evaluate((all) => all.forEach((where) => { // so that an old text is not read for a new one
        const text = document.querySelector(where)?.querySelector("p, .error, .performance");
        if (text) text.textContent = "";
    }), [info(tab), log]);
    await page.locator(`#${tab}_generate`).click();
    await until(page, "an image or a refusal", (all) => all.some((where) =>
        /Steps: \d|K-LoRA: |Error/.test(document.querySelector(where)?.innerText ?? "")), [info(tab), log]);
    await page.waitForTimeout(500);
    return page.evaluate((all) => all.map((where) => document.querySelector(where)?.innerText ?? "").join("\n").trim(), [info(tab), log]);
}

/** What is told of the last preset's action; the text must be another one than before. */
async function told(page, wanted) {
    await until(page, `told: ${wanted}`, ([where, part]) => document.querySelector(where)?.innerText.includes(part), [id("preset_told"), wanted]);
    return page.locator(id("preset_told")).first().innerText();
}

run({
    async early(page) {
        // a page that is busy: the first keys come before the next frame
        await page.evaluate(() => {
            window.frames0 = window.requestAnimationFrame;
            window.requestAnimationFrame = (act) => setTimeout(() => window.frames0.call(window, act), 1500);
        });
        await page.locator(`${id("content")} input`).first().click();
        await page.keyboard.type(content);
        seen.early = await value(page, "content");
        await page.evaluate(() => { window.requestAnimationFrame = window.frames0; });
        await page.waitForTimeout(1600);
        await page.keyboard.press("Escape");
        await page.keyboard.press("Tab");
    },
    async size(page) {
        for (const [name, number] of [["width", 64], ["height", 64], ["steps", 4]]) await write(page, `#txt2img_${name}`, number);
        await page.waitForTimeout(500);
    },
    async image(page) {
        await choose(page, "content", content);
        await choose(page, "style", style);
        await page.locator(box("txt2img")).check();
        await prompt(page).fill("a cat");
        await write(page, id("balance"), 0.7);
        seen.image = await generate(page);
        await shoot(page, "image");
    },
    async paste(page) {
        const text = seen.image.replace(/\nTime taken[^]*/, "");
        await page.locator(box("txt2img")).uncheck();
        await write(page, id("balance"), -1);
        await choose(page, "style", content);
        await prompt(page).fill(text);
        await page.locator("#paste").first().click();
        await until(page, "the pasted balance", (where) => Number(document.querySelector(where)?.value) === 0.7, `${id("balance")} input`);
        await page.waitForTimeout(500);
        seen.pasted = [await page.locator(box("txt2img")).isChecked(), await value(page, "content"), await value(page, "style")];
        seen.pastedPrompt = await prompt(page).inputValue();
    },
    async presets(page) {
        await open(page, "presets");
        await page.locator(`${id("preset_name")} input, ${id("preset_name")} textarea`).fill("mine");
        await press(page, "preset_save");
        seen.saved = await told(page, "mine");
        await page.locator(`${id("preset_name")} input, ${id("preset_name")} textarea`).fill("paper S");
        await press(page, "preset_save");
        seen.preset_refused = await told(page, "paper S");
        await write(page, id("balance"), 0);
        await page.locator(`${id("preset")} input`).first().click();
        await page.locator(`${id("preset")} ul li`, {hasText: "style-heavy"}).click();
        await until(page, "1", (where) => Number(document.querySelector(where)?.value) === 1, `${id("balance")} input`);
        await page.locator(`${id("preset")} input`).first().click();
        await page.locator(`${id("preset")} ul li`, {hasText: "mine"}).click();
        await until(page, "0.7", (where) => Number(document.querySelector(where)?.value) === 0.7, `${id("balance")} input`);
        seen.loaded = await value(page, "balance");
    },
    async exported(page) {
        const text = page.locator(`${id("preset_json")} textarea`);
        await press(page, "preset_export");
        await until(page, "the export", (where) => document.querySelector(where)?.value.includes("mine"), `${id("preset_json")} textarea`);
        seen.exported = JSON.parse(await text.inputValue());
        await text.fill(JSON.stringify({theirs: {method: "est", balance: -0.5}}));
        await press(page, "preset_import");
        seen.imported = await told(page, "1");
        await page.locator(`${id("preset")} input`).first().click();
        await page.locator(`${id("preset")} ul li`, {hasText: "theirs"}).click();
        await until(page, "theirs", (where) => document.querySelector(where)?.value === "est", `${id("method")} input`);
        await text.fill("{nonsense");
        await press(page, "preset_import");
        seen.importRefused = await told(page, "JSON");
    },
    async dropped(page) {
        for (const name of ["mine", "theirs"]) {
            await page.locator(`${id("preset_name")} input, ${id("preset_name")} textarea`).fill(name);
            await press(page, "preset_delete");
            seen.deleted = await told(page, name);
        }
        await page.locator(`${id("preset")} input`).first().click();
        seen.presetsLeft = await page.locator(`${id("preset")} ul li`).evaluateAll((all) => all.map((li) => li.getAttribute("aria-label")));
        await page.locator(`${id("preset")} ul li`, {hasText: "paper S"}).first().click();
        await until(page, "klora", (where) => document.querySelector(where)?.value === "klora", `${id("method")} input`);
    },
    async tag(page) {
        await page.locator(box("txt2img")).uncheck();
        await prompt(page).fill(`a cat <klora:${content}:${style}:1:0.8:balance=0.2>`);
        seen.tagged = await generate(page);
        await prompt(page).fill("a cat");
        seen.plain = await generate(page);
    },
    async badPair(page) {
        await page.locator(box("txt2img")).check();
        await choose(page, "style", other);
        seen.badPair = await generate(page);
        await shoot(page, "bad-pair");
        await choose(page, "style", style);
    },
    async hiresOn(page) {
        await page.locator("#txt2img_hr-visible-checkbox").check();
        if (!(await page.locator("#txt2img_hires_steps").isVisible())) await page.locator("#txt2img_hr > .label-wrap").click();
        await write(page, "#txt2img_hires_steps", 2);
        await page.waitForTimeout(500);
    },
    async hires(page) {
        await open(page, "advanced");
        await page.locator(`${id("hires")} input`).first().click();
        await page.locator(`${id("hires")} ul li`, {hasText: "own"}).click();
        await write(page, id("hires_balance"), 1.5);
        seen.hires = await generate(page);
        await page.locator(`${id("hires")} input`).first().click();
        await page.locator(`${id("hires")} ul li`, {hasText: "same"}).click();
        await write(page, id("hires_balance"), 0);
    },
    async hiresOff(page) {
        await page.locator("#txt2img_hr-visible-checkbox").uncheck();
        await page.waitForTimeout(500);
    },
    async plot(page) {
        const list = page.locator("#txt2img_script_container #script_list input").first();
        const pick = async (where, wanted) => {
            await page.locator(`${where} input`).first().click();
            await page.locator(`${where} input`).first().fill(wanted);
            await page.locator(`${where} ul li[aria-label="${wanted}"]`).click();
            await page.waitForTimeout(2000); // the WebUI empties an axis' values when its type has changed
        };
        await list.waitFor();
        await pick("#txt2img_script_container #script_list", "X/Y/Z plot");
        await pick("#script_txt2img_xyz_plot_x_type", "K-LoRA balance");
        await page.locator("#script_txt2img_xyz_plot_x_values textarea, #script_txt2img_xyz_plot_x_values input").first().fill("-1, 0, 1");
        await pick("#script_txt2img_xyz_plot_y_type", "K-LoRA method");
        for (const method of ["klora", "direct", "switch"]) {
            await page.locator("#txt2img_script_container .gradio-dropdown:visible", {hasText: "Y values"}).locator("input").click();
            await page.keyboard.type(method);
            await page.keyboard.press("Enter");
        }
        await page.keyboard.press("Tab");
        seen.plot = await generate(page);
        await page.waitForTimeout(1000);
        seen.grid = await page.evaluate(async () => {
            const shown = document.querySelector("#txt2img_gallery img");
            const picture = new Image();
            picture.src = shown.src;
            await picture.decode();
            return {width: picture.naturalWidth, height: picture.naturalHeight, src: picture.src};
        });
        await shoot(page, "plot");
        await pick("#txt2img_script_container #script_list", "None");
    },
    async byCard(page) {
        await page.locator("#txt2img_extra_tabs > .tab-nav > button", {hasText: "Lora"}).click();
        const cards = page.locator("#txt2img_lora_cards .card");
        for (let tries = 0; tries < 5 && !(await page.locator("#txt2img_lora_cards .klora-card").count()); tries++) {
            await page.locator("#txt2img_lora_extra_refresh:visible").first().click();
            await page.waitForTimeout(3000);
        }
        seen.cards = await cards.count();
        const first = await page.locator("#txt2img_lora_cards .klora-card").first().evaluate((button) => {
            button.closest(".extra-network-pane").querySelector("input, textarea, button").focus();
            return button.closest(".card").dataset.name;
        });
        for (let tabs = 0; tabs < 40; tabs++) {
            await page.keyboard.press("Tab");
            if (await page.evaluate(() => document.activeElement?.classList.contains("klora-card"))) break;
        }
        seen.cardReached = await page.evaluate(() => {
            const at = document.activeElement;
            return at?.classList.contains("klora-card") ? [at.dataset.role, getComputedStyle(at).visibility, getComputedStyle(at).opacity] : [at?.id ?? ""];
        });
        await shoot(page, "card-by-keyboard");
        await page.keyboard.press("Enter");
        await until(page, "the card's choice", ([where, wanted]) => document.querySelector(where)?.value === wanted, [`${id("content")} input`, first]);
        await page.locator("#txt2img_extra_tabs > .tab-nav > button", {hasText: "Generation"}).click();
        await choose(page, "content", content);
    },
    async img2imgSize(page) {
        await page.locator("#tabs > .tab-nav > button", {hasText: "img2img"}).first().click();
        await page.locator("#img2img_image input[type=file]").first().setInputFiles(image);
        for (const [name, number] of [["width", 64], ["height", 64], ["steps", 4]]) await write(page, `#img2img_${name}`, number);
        await page.waitForTimeout(500);
    },
    async img2img(page) {
        const where = (name) => id(name).replace("txt2img", "img2img");
        await page.locator(`${where("enabled")} > .label-wrap`).click();
        for (const [name, wanted] of [["content", content], ["style", style]]) {
            await page.locator(`${where(name)} input`).first().click();
            await page.keyboard.type(wanted);
            await page.keyboard.press("Enter");
            await until(page, `facts of ${name}`, (at) => document.querySelector(at), `${where(`${name}_facts`)} .klora-line`);
        }
        await page.locator(box("img2img")).check();
        const shown = async (steps) => {
            await page.locator(where("map")).scrollIntoViewIfNeeded();
            await until(page, `a map of ${steps} steps`, (wanted) => window.kloraMap.maps["script_img2img_klora"].view.map?.steps === wanted, steps);
            return page.evaluate(() => window.kloraMap.maps["script_img2img_klora"].view.map.share);
        };
        await write(page, "#img2img_denoising_strength", 0.9);
        seen.img2imgMaps = [await shown(4)];
        await write(page, "#img2img_denoising_strength", 0.25);
        seen.img2imgMaps.push(await shown(2));
        await page.locator("#img2img_prompt textarea").fill("a cat");
        seen.img2img = await generate(page, "img2img");
        await shoot(page, "img2img");
        await page.locator("#tabs > .tab-nav > button", {hasText: "txt2img"}).first().click();
    },
    async checkpoint(page) {
        const list = page.locator("#setting_sd_model_checkpoint input").first();
        if (!(await list.count())) return; // Forge has another list, and loads what is chosen when an image is drawn
        const old = await list.inputValue();
        const pick = async (part) => {
            await list.click();
            await page.locator("#setting_sd_model_checkpoint ul li", {hasText: part}).first().click();
        };
        await until(page, "no warning", (where) => !document.querySelector(where), `${id("fit")} .klora-trouble`);
        await pick(checkpoint);
        await until(page, "the warning", (where) => document.querySelector(where), `${id("fit")} .klora-trouble`);
        seen.otherCheckpoint = await page.locator(`${id("fit")} .klora-trouble`).innerText();
        await shoot(page, "checkpoint");
        await pick(old.split(" ")[0]);
        await until(page, "no warning", (where) => !document.querySelector(where), `${id("fit")} .klora-trouble`);
    },
    async laterCheckpoint(page) {
        const list = page.locator("#quicksettings .model_selection input").first();
        if (!(await list.count())) return; // A1111
        const asked = {};
        page.on("request", (request) => {
            const data = request.url().includes("/run/predict") ? request.postDataJSON() : null;
            if (data?.data?.[0] === "{}") asked[data.fn_index] = (asked[data.fn_index] ?? 0) + 1;
        });
        const old = await list.inputValue();
        const pick = async (part) => {
            await list.click();
            await page.locator("#quicksettings .model_selection ul li", {hasText: part}).first().click();
            await page.waitForTimeout(9000); // a second question would come after 3 seconds, a third after 6
        };
        await pick(checkpoint);
        seen.asked = Object.values(asked);
        await pick(old.split(" ")[0]);
    },
});
