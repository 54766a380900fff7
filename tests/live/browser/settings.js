// The settings page and another language: chosen, applied, the WebUI reloaded, and what the panel shows then.
// And what opening the page costs in our scripts.
// node settings.js ADDRESS FOLDER CONTENT STYLE
const {address, choose, given, id, run, seen, shoot, slow, until, value} = require("./browse.js");

const [content, style] = given;
const OURS = /\/klora[a-z_]*\.js/;

/** The milliseconds in which a script of ours was on the stack, of a profile by the browser. */
function sumOurs({nodes, samples, timeDeltas}) {
    const byId = new Map(nodes.map((node) => [node.id, {...node}]));
    const ours = new Set();
    const mark = (node, inside) => {
        const now = inside || OURS.test(node.callFrame.url);
        if (now) ours.add(node.id);
        (node.children ?? []).forEach((child) => mark(byId.get(child), now));
    };
    mark(byId.get(nodes[0].id), false);
    return samples.reduce((sum, sample, at) => sum + (ours.has(sample) ? timeDeltas[at] : 0), 0) / 1000;
}

async function pick(page, key, wanted) {
    await page.locator(`#setting_${key} input`).first().click();
    await page.locator(`#setting_${key} ul li[aria-label="${wanted}"]`).click();
}

const texts = (page, name) => page.locator(`${id(name)} label > span, ${id(name)} [data-testid=block-info]`).first().innerText();

run({
    async cost(page) {
        const browser = await page.context().newCDPSession(page);
        await browser.send("Profiler.enable");
        await browser.send("Profiler.setSamplingInterval", {interval: 200});
        await browser.send("Profiler.start");
        await page.goto(address, {waitUntil: "commit"});
        await until(page, "the panel", (where) => document.querySelector(where), `${id("enabled")}-visible-checkbox`);
        await page.waitForTimeout(3000);
        seen.milliseconds = sumOurs((await browser.send("Profiler.stop")).profile);
        process.stderr.write(`our scripts ${seen.milliseconds} ms\n`);
    },
    async settings(page) {
        await page.locator("#tabs > .tab-nav > button", {hasText: "Settings"}).first().click();
        await page.locator("#settings > .tab-nav > button", {hasText: "K-LoRA"}).click();
        await pick(page, "klora_preset", "style-heavy");
        await pick(page, "klora_engine", "bypass");
        await shoot(page, "settings");
        await page.locator("#settings > .tab-nav > button", {hasText: "User interface"}).click();
        await pick(page, "localization", "zh_CN");
        await page.locator("#settings_submit").click();
        await until(page, "settings changed", () => /changed/.test(document.querySelector("#settings_result")?.innerText ?? ""));
        seen.applied = await page.locator("#settings_result").first().innerText();
    },
    async reload(page) {
        await page.evaluate(() => { window.kloraOld = true; });
        await page.locator("#settings_restart_gradio").click();
        await until(page, "the new page", (where) => !window.kloraOld && document.querySelector(where), `${id("enabled")}-visible-checkbox`);
        await page.addStyleTag({content: "* {animation: none !important}"});
        await page.locator(`${id("enabled")} > .label-wrap`).click();
        await page.locator(id("content")).waitFor({timeout: slow});
        await page.waitForTimeout(1000);
    },
    async chinese(page) {
        seen.labels = [await texts(page, "content"), await texts(page, "balance"), await page.locator(id("swap")).innerText()];
        seen.balance = await value(page, "balance");
        seen.engine = await value(page, "engine");
        await choose(page, "content", content);
        await choose(page, "style", style);
        await until(page, "facts", (where) => document.querySelector(where), `${id("content_facts")} .klora-line`);
        await page.waitForTimeout(500);
        seen.facts = await page.locator(`${id("content_facts")} .klora-line`).innerText();
        await page.locator(`${id("content")} input`).first().click();
        await page.keyboard.type("no such file");
        await page.keyboard.press("Tab");
        await until(page, "the sentence", (where) => document.querySelector(where), `${id("pair")} .klora-said`);
        seen.said = await page.locator(`${id("pair")} .klora-said`).textContent();
        await shoot(page, "zh_CN");
    },
});
