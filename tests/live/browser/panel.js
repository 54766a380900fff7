// The panel: header, pickers, facts, trigger words, swap, presets, cards.
// node panel.js ADDRESS FOLDER CONTENT STYLE OTHER   (OTHER: a LoRA for another model)
const fs = require("fs");
const {choose, given, id, openPage, refresh, run, seen, shoot, slow, until, value} = require("./browse.js");

const [content, style, other] = given;

const title = (page) => page.locator(`${id("enabled")} .klora-title`).textContent();

/** What axe finds in the panel, rule by rule, and whether a node is in HTML of ours. */
async function runAxe(page) {
    const found = await page.evaluate((where) => window.axe.run(where, {resultTypes: ["violations"]}), id("enabled"));
    return page.evaluate((all) => all.map(({id: rule, nodes}) => ({rule, nodes: nodes.map(({html, target}) => ({
        html: html.slice(0, 200),
        ours: Boolean(document.querySelector(target[0])?.closest(".klora-answer, .klora-said, .klora-note, .klora-title, .klora-map, .klora-notice")),
    }))})), found.violations);
}

/** The names in the list of presets of a tab. */
async function listPresets(page, tab) {
    const where = id("preset").replace("txt2img", tab);
    await page.locator(`${where} input`).first().scrollIntoViewIfNeeded();
    await page.waitForTimeout(1500); // coming into view, it is listed anew
    await page.locator(`${where} input`).first().click();
    const names = await page.locator(`${where} ul li`).evaluateAll((all) => all.map((li) => li.getAttribute("aria-label")));
    await page.keyboard.press("Escape");
    await page.keyboard.press("Tab");
    return names;
}

/** Has a tab's box of presets save or delete "ours". */
async function keepPreset(page, act) {
    if (!(await page.locator(id("preset_name")).isVisible())) await page.locator(`${id("presets")} > .label-wrap`).click();
    await page.locator(`${id("preset_name")} input, ${id("preset_name")} textarea`).fill("ours");
    await page.locator(id(`preset_${act}`)).click();
    await until(page, "what is told", (where) => document.querySelector(where)?.innerText.includes("ours"), id("preset_told"));
    await page.waitForTimeout(1000);
}

run({
    async header(page) {
        await page.locator(`${id("enabled")} > .label-wrap`).focus();
        seen.header = [];
        for (let times = 0; times < 2; times++) {
            await page.keyboard.press("Enter");
            await page.waitForTimeout(500);
            seen.header.push(await page.locator(id("content")).isVisible());
        }
    },
    async unknown(page) {
        await page.locator(`${id("content")} input`).first().click();
        await page.keyboard.type("no such file");
        await page.keyboard.press("Tab");
        await until(page, "the sentence", (where) => document.querySelector(where), `${id("pair")} .klora-said`);
        seen.unknown = await page.locator(`${id("pair")} .klora-said`).textContent();
        seen.afterUnknown = await value(page, "content");
    },
    refresh,
    async typed(page) {
        const leave = {
            Tab: () => page.keyboard.press("Tab"),
            Enter: () => page.keyboard.press("Enter"),
            Escape: async () => {
                await page.keyboard.press("Escape");
                await page.waitForTimeout(400);
                await page.locator("#txt2img_prompt textarea").click();
            },
        };
        seen.typed = {};
        for (const [key, act] of Object.entries(leave)) {
            await choose(page, "content", content);
            await page.locator(`${id("content")} input`).first().click();
            await page.keyboard.type("cat");
            await page.waitForTimeout(300);
            await act();
            await page.waitForTimeout(1000);
            const said = await page.locator(`${id("pair")} .klora-said`).allTextContents();
            seen.typed[key] = [await value(page, "content"), said.join("")];
        }
    },
    async arrows(page) {
        // "cat" is typed in full, but the arrow keys go to another one
        await page.locator(`${id("content")} input`).first().click();
        await page.keyboard.type("cat");
        await page.waitForTimeout(300);
        const active = () => page.locator(`${id("content")} ul li.active`).getAttribute("aria-label");
        for (let times = 0; times < 4; times++) {
            await page.keyboard.press("ArrowUp");
            if (await active() === "bobcat") break;
        }
        seen.arrows = [await active()];
        await page.keyboard.press("Enter");
        await page.waitForTimeout(1000);
        seen.arrows.push(await value(page, "content"));
    },
    async scrollbar(page) {
        await choose(page, "content", content);
        await page.locator(`${id("content")} input`).first().click();
        await page.keyboard.type("bobc");
        await page.locator(`${id("content")} ul.options`).evaluate((list) => list.dispatchEvent(new MouseEvent("mousedown", {bubbles: true, cancelable: true})));
        await page.keyboard.press("Tab");
        await page.waitForTimeout(1000);
        seen.afterScrollbar = await value(page, "content");
    },
    async chosenAgain(page) {
        // a part of the chosen name is typed, and the same LoRA taken: by Enter, and by the mouse
        seen.chosenAgain = [];
        for (const act of [() => page.keyboard.press("Enter"), () => page.locator(`${id("content")} ul li`).first().click()]) {
            await page.locator(`${id("content")} input`).first().click();
            await page.keyboard.type(content.slice(0, -1));
            await act();
            await page.waitForTimeout(3000); // time enough for a wrong answer
            seen.chosenAgain.push([await value(page, "content"), await page.locator(`${id("content_facts")} .klora-line`).count()]);
            await page.keyboard.press("Tab");
        }
    },
    async pick(page) {
        await choose(page, "content", content, content.slice(0, -1));
        await choose(page, "style", style);
        for (const name of ["content", "style"]) {
            await until(page, `facts of ${name}`, (where) => document.querySelector(where), `${id(`${name}_facts`)} .klora-line`);
        }
        seen.facts = await page.locator(`${id("content_facts")} .klora-line`).innerText();
        seen.chips = await page.locator(`${id("content_facts")} .klora-chip`).allTextContents();
        seen.injected = await page.evaluate(() => window.kloraInjected ?? null);
        seen.title = await title(page);
        await page.locator(`${id("content")} input`).first().click();
        await page.keyboard.type("ca");
        await page.waitForTimeout(500);
        seen.titleWhileTyping = await title(page);
        await page.keyboard.press("Tab");
        await shoot(page, "panel");
    },
    async chip(page) {
        if (!seen.chips.length) return;
        await page.locator(`${id("content_facts")} .klora-chip`).first().click();
        await page.locator(`${id("content_facts")} .klora-chip`).first().click();
        const prompt = page.locator("#txt2img_prompt textarea");
        seen.prompt = await prompt.inputValue();
        await prompt.fill("hourglass, grassy");
        for (let times = 0; times < 2; times++) await page.locator(`${id("content_facts")} .klora-chip`, {hasText: "grass"}).click();
        seen.promptWithPart = await prompt.inputValue();
    },
    async asked(page) {
        await page.evaluate(() => {
            KLoraPanel.all[0].ask({content: "cat"});
            KLoraPanel.all[0].ask({style: "bobcat"});
        });
        for (const [name, wanted] of [["content", "cat"], ["style", "bobcat"]]) {
            await until(page, wanted, ([where, lora]) => document.querySelector(where)?.value === lora, [`${id(name)} input`, wanted]);
        }
        await choose(page, "content", content);
        await choose(page, "style", style);
    },
    async swap(page) {
        await page.locator(id("swap")).click();
        await until(page, "the swap", ([where, wanted]) => document.querySelector(where)?.value === wanted, [`${id("content")} input`, style]);
        seen.swapped = [await value(page, "content"), await value(page, "style")];
    },
    async misfit(page) {
        await choose(page, "style", other);
        await until(page, "the warning", (where) => document.querySelector(where), `${id("fit")} .klora-trouble`);
        seen.misfit = await page.locator(`${id("fit")} .klora-trouble`).textContent();
        await shoot(page, "misfit");
        await choose(page, "style", content);
        await until(page, "no warning", (where) => !document.querySelector(where), `${id("fit")} .klora-trouble`);
    },
    async late(page) {
        // the first pair's answer comes after the second's: what is said in the end is about the second
        const old = JSON.stringify([style, other]);
        const answered = page.waitForResponse((answer) => JSON.stringify(answer.request().postDataJSON?.()?.data) === old);
        await page.route("**/run/predict*", async (route) => {
            const asked = JSON.stringify(route.request().postDataJSON()?.data);
            if (asked === old) {
                seen.held = (seen.held ?? 0) + 1;
                await new Promise((done) => setTimeout(done, 6000));
            }
            await route.continue();
        });
        await choose(page, "style", other);
        await choose(page, "style", content);
        await page.locator("#txt2img_prompt textarea").click();
        await answered; // gradio 3 shows the late answer now, gradio 4 has kept the second request back until now
        await page.waitForTimeout(500);
        const wanted = `${style}\n${content}`;
        await until(page, "the right answer", ([where, about]) => {
            const answer = document.querySelector(where);
            return answer?.dataset.for === about && !answer.querySelector(".klora-trouble");
        }, [`${id("fit")} .klora-answer`, wanted]);
        await page.unroute("**/run/predict*");
    },
    async preset(page) {
        await page.locator(`${id("preset")} input`).first().click();
        await page.locator(`${id("preset")} ul li`, {hasText: "style-heavy"}).click();
        await until(page, "the balance", (where) => Number(document.querySelector(where)?.value) === 1, `${id("balance")} input`);
        seen.preset = await value(page, "balance");
    },
    async axe(page) {
        await page.addScriptTag({content: fs.readFileSync(require.resolve("axe-core/axe.min.js"), "utf-8")});
        seen.axe = await runAxe(page);
    },
    async dark(page) {
        await page.evaluate(() => document.body.classList.add("dark"));
        await page.waitForTimeout(300);
        await shoot(page, "dark");
        seen.axeInTheDark = await runAxe(page);
        await page.evaluate(() => document.body.classList.remove("dark"));
    },
    async cards(page) {
        await page.locator("#txt2img_extra_tabs > .tab-nav > button", {hasText: "Lora"}).click();
        const refresh = page.locator("#txt2img_lora_extra_refresh:visible").first(); // the file is newer than the page
        const card = page.locator(`#txt2img_lora_cards .card[data-name="${content}"]`);
        for (let tries = 0; tries < 5 && !(await card.count()); tries++) { // A1111 passes over a click while the tab opens
            await refresh.click();
            await page.waitForTimeout(3000);
        }
        await card.hover();
        await card.locator(".klora-card").first().waitFor();
        seen.cardButtons = await card.locator(".klora-card").allTextContents();
        const before = await page.locator("#txt2img_prompt textarea").inputValue();
        await card.locator('.klora-card[data-role="content"]').click();
        await until(page, "the card's choice", ([where, wanted]) => document.querySelector(where)?.value === wanted, [`${id("content")} input`, content]);
        await page.locator(`#txt2img_lora_cards .card[data-name="${style}"]`).hover();
        await page.locator(`#txt2img_lora_cards .card[data-name="${style}"] .klora-card[data-role="style"]`).click();
        await until(page, "the card's choice", ([where, wanted]) => document.querySelector(where)?.value === wanted, [`${id("style")} input`, style]);
        seen.promptKept = before === await page.locator("#txt2img_prompt textarea").inputValue();
        await shoot(page, "cards");
        await refresh.click();
        await page.waitForTimeout(3000);
        await until(page, "buttons after a refresh", () => document.querySelector("#txt2img_lora_cards .klora-card"));
        seen.pressed = await page.locator('#txt2img_lora_cards .klora-card[aria-pressed="true"]').count();
        await page.locator("#txt2img_extra_tabs > .tab-nav > button", {hasText: "Generation"}).click();
    },
    async presetOfAnotherTab(page) {
        await keepPreset(page, "save");
        await page.locator("#tabs > .tab-nav > button", {hasText: "img2img"}).first().click();
        await page.locator(`${id("enabled").replace("txt2img", "img2img")} > .label-wrap`).click();
        await page.waitForTimeout(2000);
        seen.presetsInOtherTab = await listPresets(page, "img2img");
    },
    async presetOfAnotherPage(page) {
        await openPage(page);
        await page.waitForTimeout(2000);
        seen.presetsAfterReload = await listPresets(page, "txt2img");
        await keepPreset(page, "delete");
    },
});
