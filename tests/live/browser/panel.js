// The panel: pickers, facts, trigger words, swap, presets, cards.
// node panel.js ADDRESS FOLDER CONTENT STYLE OTHER   (OTHER: a LoRA for another model)
const fs = require("fs");
const {choose, given, id, run, seen, shoot, slow, until, value} = require("./browse.js");

const [content, style, other] = given;

run({
    async unknown(page) {
        await page.locator(`${id("content")} input`).first().click();
        await page.keyboard.type("no such file");
        await page.keyboard.press("Tab");
        await until(page, "the sentence", (where) => document.querySelector(where), `${id("pair")} .klora-said`);
        seen.unknown = await page.locator(`${id("pair")} .klora-said`).textContent();
        seen.afterUnknown = await value(page, "content");
    },
    async refresh(page) {
        await page.locator(id("content_refresh")).click();
        await page.locator(id("style_refresh")).click();
        await page.waitForTimeout(1500);
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
        seen.title = await page.locator(`${id("enabled")} .klora-title`).textContent();
        await shoot(page, "panel");
    },
    async chip(page) {
        if (!seen.chips.length) return;
        await page.locator(`${id("content_facts")} .klora-chip`).first().click();
        await page.locator(`${id("content_facts")} .klora-chip`).first().click();
        seen.prompt = await page.locator("#txt2img_prompt textarea").inputValue();
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
        const found = await page.evaluate((where) => window.axe.run(where, {resultTypes: ["violations"]}), id("enabled"));
        seen.axe = found.violations.map(({id: rule, nodes}) => ({rule, nodes: nodes.map((node) => node.html.slice(0, 200))}));
    },
    async dark(page) {
        await page.evaluate(() => document.body.classList.add("dark"));
        await shoot(page, "dark");
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
});
