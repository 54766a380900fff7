// What all drivers share: a WebUI's page in chromium, the panel's controls, and steps whose failures are told.
// node DRIVER.js ADDRESS FOLDER …   (FOLDER: for screenshots).  What was seen goes to the standard output as JSON.
const {chromium} = require("playwright-core");
const path = require("path");

const [address, folder, ...given] = process.argv.slice(2);
const slow = Number(process.env.KLORA_BROWSER_SECONDS || 120) * 1000;
const seen = {console: [], failed: [], errors: []};
const id = (name) => `#script_txt2img_klora_${name}`;

/** Waits until `look` in the page is true for `given`; throws with `what` if it never is. */
async function until(page, what, look, given) {
    try {
        await page.waitForFunction(look, given, {timeout: slow, polling: 100});
    } catch (error) {
        throw new Error(`never seen: ${what} (${error.message.split("\n")[0]})`);
    }
}

const value = (page, name) => page.locator(`${id(name)} input`).first().inputValue();

async function choose(page, name, lora, typed = lora) {
    await page.locator(`${id(name)} input`).first().click();
    await page.keyboard.type(typed);
    seen[`options of ${typed}`] = await page.locator(`${id(name)} ul li`).evaluateAll((all) => all.map((li) => li.getAttribute("aria-label")));
    await page.keyboard.press("Enter");
    await until(page, `${name} is ${lora}`, ([where, wanted]) => document.querySelector(where)?.value === wanted, [`${id(name)} input`, lora]);
}

/** Has both pickers list the files that are there now. */
async function refresh(page) {
    await page.locator(id("content_refresh")).click();
    await page.locator(id("style_refresh")).click();
    await page.waitForTimeout(1500);
}

async function open(page) {
    // what the page itself fetches from elsewhere is not ours to wait for
    await page.route("**/*", (route) => route.request().url().startsWith(address) ? route.continue() : route.abort());
    await page.goto(address, {waitUntil: "commit"});
    await until(page, "the panel", (where) => document.querySelector(where), `${id("enabled")}-visible-checkbox`);
    await page.locator(`${id("enabled")} > .label-wrap`).click();
    await page.locator(id("content")).waitFor({timeout: slow});
    await page.addStyleTag({content: "* {animation: none !important}"});
}

/** Does the steps one after another, of which the first opens the page. */
async function run(steps) {
    const browser = await chromium.launch({executablePath: process.env.KLORA_CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"]});
    const page = await browser.newPage({viewport: {width: 1400, height: 1600}});
    page.setDefaultTimeout(slow);
    page.on("console", (message) => {
        if (["error", "warning"].includes(message.type())) seen.console.push(`${message.text()} (${message.location().url})`);
    });
    let doing = "";
    page.on("pageerror", (error) => seen.errors.push(`${doing}: ${error.stack ?? error}`));
    for (const [name, step] of Object.entries({open, ...steps})) {
        const begun = Date.now();
        doing = name;
        try {
            await step(page);
        } catch (error) {
            seen.failed.push(`${name}: ${error.message}`);
            await page.screenshot({path: path.join(folder, `failed-${name}.png`)}).catch(() => null);
            if (name === "open") break;
        }
        process.stderr.write(`${name} ${Date.now() - begun} ms\n`);
    }
    await browser.close();
    process.stdout.write(JSON.stringify(seen, null, 2));
}

const shoot = (page, name) => page.screenshot({path: path.join(folder, `${name}.png`)});

module.exports = {address, choose, folder, given, id, openPage: open, refresh, run, seen, shoot, slow, until, value};
