// A person before a Superset dashboard, in headless Chromium.  run.sh tells it what to do:
//   node browse.mjs MODULES WIDTH <REQUESTS >REPLIES
// A request is a line of words parted by tabs.  A reply is any number of lines, then "= ok" or "= MESSAGE".
//   login URL USER PASSWORD       logs in
//   open SLUG                     opens a dashboard, also anew: then only its first tab has loaded charts
//   tabs                          the names of its tabs
//   tab NAME                      shows a tab, waits for its charts; a line each: STATE, kind, title (STATE is ok or what is wrong)
//   look                          the same of the tab that is open
//   number TITLE                  the big number
//   range TITLE                   from when to when its last answer is, as ISO times; empty: without bound
//   table TITLE                   the rows of a table that are on the page, cells parted by tabs
//   refreshes                     answers with data that the least refreshed chart of the open tab has had
//   await N                       until refreshes is N at least; nothing is clicked
//   choose FILTER VALUE           sets a filter to what its list offers, or a time range to "Last day" and its like
//   clear                         clears all filters
//   shot FILE                     a picture of the open tab as a whole
//   complaints                    what went wrong besides: HTTP status 400 and above, failed scripts
import { createRequire } from 'node:module';
import readline from 'node:readline';

const [modules, width] = process.argv.slice(2);
const { chromium } = createRequire(`${modules}/package.json`)('playwright-core');
const PATIENCE_MS = 90000;
const LEAST_INK = 60;           // pixels in colour that a drawn chart has at least

const browser = await chromium.launch({
	executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
	args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
		'--disable-component-update', '--disable-sync'],
});
const page = await browser.newPage({ viewport: { width: Number(width), height: 2400 }, locale: 'en-US', timezoneId: 'UTC' });
page.setDefaultTimeout(PATIENCE_MS);

// What the server answers, chart by chart.
const answers = new Map();      // chart id -> { n, rows, from, to } of the last answer, n: how many there were
const answered = new Set();     // ids of charts that have had an answer, be it an error
const complaints = [];
let base;                       // address of Superset
const asked = new Set();        // requests for data on their way
let n_asked = 0;
page.on('request', (request) => {
	if (new URL(request.url()).pathname !== '/api/v1/chart/data') return;
	asked.add(request);
	n_asked++;
});
page.on('requestfinished', (request) => asked.delete(request));
page.on('requestfailed', (request) => asked.delete(request));
page.on('response', async (response) => {
	const url = new URL(response.url());
	if (response.status() >= 400) complaints.push(`${response.status()} ${url.pathname}`);
	if (url.pathname !== '/api/v1/chart/data') return;
	try {
		const id = JSON.parse(url.searchParams.get('form_data') ?? '{}').slice_id;
		answered.add(id);
		if (response.status() !== 200) return;
		const { result } = await response.json();
		const before = answers.get(id)?.n ?? 0;
		answers.set(id, { n: before + 1, rows: Math.max(...result.map((query) => query.rowcount ?? 0)), from: result[0].from_dttm, to: result[0].to_dttm });
	} catch (error) {
		// A page that moves on drops what it was still waiting for.
		if (!/Target|No resource|Protocol error/.test(error.message)) complaints.push(error.message);
	}
});
page.on('pageerror', (error) => complaints.push(`script: ${error.message.split('\n')[0]}`));

// Runs in the page: the charts of the open tab and what each looks like.
function charts_in_page(least_ink) {
	const ink = (canvas) => {
		if (!canvas.width || !canvas.height) return 0;
		const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
		let n = 0;
		for (let i = 0; i < data.length; i += 4) {
			const low = Math.min(data[i], data[i + 1], data[i + 2]), high = Math.max(data[i], data[i + 1], data[i + 2]);
			if (data[i + 3] > 64 && high - low > 24) n++;
		}
		return n;
	};
	const state = (chart) => {
		const body = chart.querySelector('[data-test="chart-container"]') ?? chart;
		const wrong = [...body.querySelectorAll('[role="alert"], .ant-alert-error, .ant-alert-warning, .ant-empty, [data-test*="error" i]')]
			.filter((element) => !element.closest('td')).map((element) => element.innerText.trim()).filter(Boolean);
		if (wrong.length) return `says: ${wrong[0].replace(/\s+/g, ' ').slice(0, 200)}`;
		// The words of the chart itself; what stands in a cell of a table is data.
		const words = body.cloneNode(true);
		words.querySelectorAll('td, style').forEach((element) => element.remove());
		const text = words.textContent.replace(/\s+/g, ' ');
		const bad = text.match(/no results|no data|unexpected error|data error|invalid|failed|timed? ?out|permission denied|does not exist|undefined|NaN/i);
		if (bad) return `says: ${text.slice(Math.max(0, bad.index - 40), bad.index + 160)}`;
		if (!body.querySelector('[data-test="slice-container"]') ||
			body.querySelector('.loading, [data-test="loading-indicator"], [aria-label="Loading"], .ant-spin-spinning')) return 'is loading';
		const kind = chart.dataset.testVizType;
		if (kind.startsWith('big_number'))
			return /\d/.test(body.querySelector('.header-line')?.innerText ?? '') ? 'ok' : 'shows no number';
		const rows = [...body.querySelectorAll('tbody tr')];
		if (body.querySelector('table'))
			return rows.some((row) => [...row.cells].some((cell) => cell.innerText.trim())) ? 'ok' : 'is an empty table';
		const canvases = [...body.querySelectorAll('canvas')];
		if (canvases.length) {
			const drawn = canvases.reduce((n, canvas) => n + ink(canvas), 0);
			return drawn >= least_ink ? 'ok' : `is drawn with ${drawn} pixels in colour`;
		}
		return words.textContent.trim() || rows.length ? 'ok' : 'is empty';
	};
	return [...document.querySelectorAll('[data-test-chart-name]')].filter((chart) => chart.offsetParent !== null)
		.map((chart) => ({ id: Number(chart.dataset.testChartId), kind: chart.dataset.testVizType,
			title: chart.querySelector('[data-test="editable-title"]')?.innerText.trim() || chart.dataset.testChartName, state: state(chart) }));
}

async function until(condition, what) {
	const deadline = Date.now() + PATIENCE_MS;
	for (;;) {
		const result = await condition();
		if (result) return result;
		if (Date.now() > deadline) throw new Error(`waited in vain: ${what}`);
		await page.waitForTimeout(100);
	}
}

// The page grows to what the tab needs, so that every chart is in view: those outside are not loaded.
async function fit() {
	const height = await page.evaluate(() => Math.ceil(Math.max(...[...document.querySelectorAll('[data-test-chart-name], .dashboard-markdown')]
		.filter((element) => element.offsetParent !== null).map((element) => element.getBoundingClientRect().bottom + window.scrollY))) + 48);
	if (height > 200 && Math.abs(height - page.viewportSize().height) > 8)
		await page.setViewportSize({ width: Number(width), height: Math.min(height, 6000) });
}

// Until every chart has been seen, and what they look like has not changed for half a second.  An automatic refresh may begin at
// any time: what a chart looked like before it loads again counts.
async function settle() {
	await page.waitForFunction(() => [...document.querySelectorAll('[data-test-chart-name]')].some((chart) => chart.offsetParent !== null));
	await fit();
	const seen = new Map();
	let charts = [], still_since = Date.now(), last = '';
	const deadline = Date.now() + PATIENCE_MS;
	while (Date.now() < deadline) {
		charts = await page.evaluate(charts_in_page, LEAST_INK);
		for (const chart of charts)
			if (chart.state !== 'is loading' || !seen.has(chart.id)) seen.set(chart.id, chart.state);
		const is_waiting = charts.some((chart) => !answered.has(chart.id) || seen.get(chart.id) === 'is loading');
		const now = charts.map((chart) => `${chart.id} ${answered.has(chart.id)} ${seen.get(chart.id)}`).join();
		if (now !== last) still_since = Date.now();
		last = now;
		const quiet_ms = Date.now() - still_since;
		const well = charts.every((chart) => seen.get(chart.id) === 'ok');
		if (charts.length && (well ? quiet_ms > 500 : quiet_ms > 5000 && !is_waiting)) break;
		await page.waitForTimeout(100);
	}
	await fit();
	return charts.map((chart) => {
		let state = seen.get(chart.id);
		if (state === 'ok' && !answers.has(chart.id)) state = 'has asked for no data';
		else if (state === 'ok' && answers.get(chart.id).rows === 0) state = 'got no rows';
		return `${state}\t${chart.kind}\t${chart.title}`;
	});
}

const chart_named = (title) => page.locator('[data-test-chart-name]:visible').filter({
	has: page.locator('[data-test="editable-title"]').getByText(title, { exact: true }) }).first();
const refreshes = async () => Math.min(...(await page.evaluate(charts_in_page, 0)).map((chart) => answers.get(chart.id)?.n ?? 0));

const filter_named = (name) => page.locator('.ant-form-item').filter({
	has: page.locator('[data-test="filter-control-name"]').getByText(name, { exact: true }) }).first();
// After CLICK: until a chart has been asked for anew and all answers are here.
async function applied(click) {
	const before = n_asked;
	await click();
	await until(() => n_asked > before, 'no chart was asked for anew');
	await until(() => asked.size === 0, 'answers');
}
const apply = () => applied(() => page.locator('[data-test="filter-bar__apply-button"]').click());

const commands = {
	async login(url, user, password) {
		base = url;
		// The form is there before it listens: until it has been heard.
		await until(async () => {
			await page.goto(`${url}/login/`, { waitUntil: 'networkidle' });
			await page.fill('input[name="username"], #username', user);
			await page.fill('input[name="password"], #password', password);
			await page.click('button[type="submit"], input[type="submit"]');
			return page.waitForURL((to) => !to.pathname.startsWith('/login'), { timeout: 20000 }).then(() => true, () => false);
		}, 'logged in');
	},
	async open(slug) {
		answers.clear();
		answered.clear();
		await page.goto(`${base}/superset/dashboard/${slug}/`);
		await page.waitForSelector('[data-test-chart-name]');
	},
	async tabs() {
		return page.locator('.dashboard-component-tabs [role="tab"]:visible').allInnerTexts();
	},
	async tab(name) {
		await page.locator('.dashboard-component-tabs [role="tab"]:visible').filter({ hasText: name }).first().click();
		return settle();
	},
	look: settle,
	async number(title) {
		return [await chart_named(title).locator('.header-line').innerText()];
	},
	async range(title) {
		const { from, to } = answers.get(Number(await chart_named(title).getAttribute('data-test-chart-id')));
		return [from, to].map((ms) => (ms ? new Date(ms).toISOString() : ''));
	},
	async table(title) {
		return chart_named(title).locator('tbody tr').evaluateAll((rows) =>
			rows.map((row) => [...row.cells].map((cell) => cell.innerText.trim().replace(/\s+/g, ' ')).join('\t')));
	},
	async refreshes() {
		return [String(await refreshes())];
	},
	async await(n) {
		await until(async () => await refreshes() >= Number(n), `${n} refreshes`);
	},
	async choose(name, value) {
		const filter = filter_named(name);
		const range = filter.locator('[data-test="time-range-trigger"]');
		if (await range.count()) {
			// "Last day" and its like.
			await range.click();
			const editor = page.locator('.ant-popover:visible, .ant-modal:visible').last();
			await editor.locator('.ant-select').first().click();
			await page.locator('.ant-select-item-option:visible').getByText(value.split(' ')[0], { exact: true }).click();
			await editor.getByText(value, { exact: false }).last().click();
			await editor.locator('[data-test="date-filter-control__apply-button"]').click();
		} else {
			await filter.locator('.ant-select').click();
			await filter.locator('input[role="combobox"]').fill(value);
			await page.locator('.ant-select-item-option:visible').getByText(value, { exact: true }).first().click();
			await page.keyboard.press('Escape');
		}
		return apply();
	},
	async clear() {
		return applied(() => page.locator('[data-test="filter-bar__clear-button"]').click());
	},
	async shot(file) {
		await fit();
		await page.mouse.move(1, 1);
		await page.screenshot({ path: file });
	},
	async complaints() {
		return complaints.splice(0);
	},
};

for await (const line of readline.createInterface({ input: process.stdin })) {
	const [name, ...words] = line.split('\t');
	let ended = '= ok';
	try {
		if (!Object.hasOwn(commands, name)) throw new Error(`no command ${name}`);
		for (const text of (await commands[name](...words)) ?? []) console.log(text);
	} catch (error) {
		ended = `= ${name}: ${error.message.replace(/\s+/g, ' ')}`;
	}
	console.log(ended);
}
await browser.close();
