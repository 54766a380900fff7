// The panel with a pair chosen, as the README shows it.
// node picture.js ADDRESS FOLDER CONTENT STYLE
const path = require("path");
const {choose, folder, given, id, run, seen, until} = require("./browse.js");

const [content, style] = given;

run({
    async picture(page) {
        await page.setViewportSize({width: 1500, height: 1600});
        await page.locator(`${id("enabled")}-visible-checkbox`).check();
        for (const name of ["content", "style"]) await page.locator(id(`${name}_refresh`)).click(); // the files are newer than the page
        await page.waitForTimeout(3000);
        await choose(page, "content", content);
        await choose(page, "style", style);
        for (const name of ["content", "style"]) {
            await until(page, `facts of ${name}`, (where) => document.querySelector(where), `${id(`${name}_facts`)} .klora-chip`);
        }
        await until(page, "the map", (where) => document.querySelector(where)?.hidden === false, `${id("map")} canvas`);
        await page.mouse.move(0, 0);
        await page.evaluate(() => document.activeElement?.blur());
        await page.waitForTimeout(500);
        seen.picture = path.join(folder, "readme.png");
        await page.locator(id("enabled")).screenshot({path: seen.picture});
    },
});
