// The live selection map: drawn, redrawn, asked with the pointer and the keys, refused, cancelled, closed.
// node map.js ADDRESS FOLDER CONTENT STYLE FULL_CONTENT FULL_STYLE   (the last two: full-size SDXL, not read before)
const {choose, given, id, refresh, run, seen, shoot, slow, until} = require("./browse.js");

const [content, style, fullContent, fullStyle] = given;
const CHANGES = 30;
const canvas = `${id("map")} canvas`;
const requests = [];

const sentence = (page) => page.locator(`${id("map")} .klora-map-sentence`).textContent();

/** The map that the page shows, as it came. */
const shown = (page) => page.evaluate(() => window.kloraMap.maps["script_txt2img_klora"].view.map);

const isDrawn = (page) => until(page, "the map", (where) => document.querySelector(where)?.hidden === false, canvas);

/** Types a number into a control; returns the milliseconds until the map is drawn anew, or null if `wait` is false. */
function change(page, name, number, wait = true) {
    return page.evaluate(([where, wanted, mustWait]) => new Promise((done, fail) => {
        const box = document.querySelector(`${where} input[type=number], ${where} input`);
        const begun = performance.now();
        if (mustWait) document.addEventListener("klora-map-drawn", () => requestAnimationFrame(() => done(performance.now() - begun)), {once: true});
        setTimeout(() => fail(new Error(`no map after ${wanted}`)), 20000);
        const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set;
        set.call(box, String(wanted));
        box.dispatchEvent(new Event("input", {bubbles: true}));
        box.dispatchEvent(new Event("change", {bubbles: true}));
        box.blur();
        if (!mustWait) done(null);
    }), [id(name), number, wait]);
}

const open = (page, where) => page.locator(`${where} > .label-wrap`).click();

const MOST_TABS = 60;

/** The ids of the panel's components that Tab reaches, in their order, from the header on. */
async function walk(page) {
    await page.locator(`${id("enabled")}-visible-checkbox`).focus();
    const reached = [];
    for (let tabs = 0; tabs < MOST_TABS; tabs++) {
        await page.keyboard.press("Tab");
        const where = await page.evaluate(() => {
            const at = document.activeElement;
            return at?.closest('[id="script_txt2img_klora_enabled"]') ? at.closest('[id^="script_txt2img_klora_"]').id : null;
        });
        if (!where) break;
        reached.push(where.replace("script_txt2img_klora_", ""));
    }
    return reached;
}

run({
    async drawn(page) {
        page.on("request", (request) => {
            if (request.url().includes("/klora/panel/map")) requests.push(request.postDataJSON());
        });
        await refresh(page); // the files are newer than the page
        await choose(page, "content", content);
        await choose(page, "style", style);
        await isDrawn(page);
        seen.first = await shown(page);
        seen.sentence = await sentence(page);
        await page.locator(canvas).scrollIntoViewIfNeeded();
        await shoot(page, "map");
    },
    async balance(page) {
        await change(page, "balance", 0.5);
        seen.balanced = await shown(page);
        await change(page, "balance", 0);
        await open(page, id("advanced"));
        await page.locator(id("alpha")).waitFor();
        await change(page, "alpha", 3);
        seen.alpha = await shown(page);
        await change(page, "alpha", 1.5);
    },
    async steps(page) {
        await page.locator("#txt2img_steps input[type=number]").fill("7");
        await until(page, "a map of 7 steps", () => window.kloraMap.maps["script_txt2img_klora"].view.map?.steps === 7);
        await page.locator("#txt2img_steps input[type=number]").fill("20");
        await until(page, "a map of 20 steps", () => window.kloraMap.maps["script_txt2img_klora"].view.map?.steps === 20);
    },
    async pointer(page) {
        const box = await page.locator(canvas).boundingBox();
        await page.mouse.move(box.x + box.width / 2, box.y + 40);
        await until(page, "what is told", (where) => document.querySelector(where)?.textContent, `${id("map")} .klora-map-told`);
        seen.pointed = await page.locator(`${id("map")} .klora-map-told`).textContent();
        await shoot(page, "map-pointer");
        await page.mouse.move(0, 0);
    },
    async keys(page) {
        await page.locator(canvas).focus();
        await page.keyboard.press("Home");
        for (let n = 0; n < 20; n++) await page.keyboard.press("ArrowLeft");
        await page.keyboard.press("ArrowRight");
        seen.keyed = await page.locator(`${id("map")} .klora-map-told`).textContent();
        await page.keyboard.press("Tab");
    },
    async tabs(page) {
        seen.reached = await walk(page);
    },
    async again(page) {
        // one answer fails: the next request comes by itself, and not soon
        await page.route("**/klora/panel/map", (route) => route.fulfill({status: 200, body: "no JSON"}), {times: 1});
        const asked = requests.length;
        await change(page, "balance", 0.1, false);
        await until(page, "the failure", (where) => document.querySelector(where), `${id("map")} .klora-map-refused`);
        seen.failure = await sentence(page);
        const begun = Date.now();
        await until(page, "the map again", (where) => !document.querySelector(where), `${id("map")} .klora-map-refused`);
        seen.again = [Date.now() - begun, requests.length - asked];
        await change(page, "balance", 0);
    },
    async refused(page) {
        await choose(page, "style", content);
        await until(page, "the refusal", (where) => document.querySelector(where), `${id("map")} .klora-map-refused`);
        seen.refused = await sentence(page);
        await shoot(page, "map-refused");
        await choose(page, "style", style);
        await until(page, "the map again", (where) => !document.querySelector(where), `${id("map")} .klora-map-refused`);
    },
    async cancelled(page) {
        await choose(page, "content", fullContent);
        await choose(page, "style", fullStyle);
        const cancel = page.locator(`${id("map")} .klora-map-wait button`);
        await cancel.waitFor({timeout: slow});
        await shoot(page, "map-waiting");
        await cancel.focus();
        await page.keyboard.press("Enter");
        const asked = requests.length;
        seen.cancelled = await sentence(page);
        seen.focusAfterCancelling = await page.evaluate(() => document.activeElement?.className);
        await page.waitForTimeout(2000);
        seen.askedAfterCancelling = requests.slice(asked).filter((request) => !request.stop).length; // one tells the server
    },
    async fullSize(page) {
        await page.locator("#txt2img_steps input[type=number]").fill("19"); // which the panel has no event for
        await until(page, "the full-size map", () => (window.kloraMap.maps["script_txt2img_klora"].view.map?.rows.length ?? 0) > 500);
        await isDrawn(page);
        seen.times = [];
        for (let n = 0; n < CHANGES; n++) {
            seen.times.push(await change(page, n % 2 ? "alpha" : "balance", n % 2 ? 1 + n / 20 : (n - 15) / 20));
        }
        await page.locator(canvas).scrollIntoViewIfNeeded();
        await shoot(page, "map-full");
        await page.evaluate(() => document.body.classList.add("dark"));
        await page.waitForTimeout(300);
        await shoot(page, "map-dark");
        await page.evaluate(() => document.body.classList.remove("dark"));
    },
    async closed(page) {
        await open(page, id("enabled"));
        await page.waitForTimeout(1000);
        const asked = requests.length;
        await page.locator("#txt2img_steps input[type=number]").fill("9");
        await page.waitForTimeout(2500);
        seen.askedWhenClosed = requests.length - asked;
    },
});
