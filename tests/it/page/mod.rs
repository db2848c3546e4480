//! The dashboard in a real browser, as people use it: over made-up data of any size and state, and over the real
//! daemon.
//!
//! `PAGE_URL` and `PAGE_TOKEN` point the tour at another server; `PAGE_SHOTS` names a directory for screenshots.

mod browser;

use std::process::Command;

use browser::{Browser, Listening, http};
use serde_json::{Value, json};

const TOKEN: &str = "page-test-token";

/// The made-up API with so many providers, on a port of its own.
struct Fake {
    base: String,
    _server: Listening,
}

impl Fake {
    fn new(providers: usize) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page/fake_api.py");
        let mut command = Command::new("python3");
        command.args([script, "--providers", &providers.to_string(), "--token", TOKEN]);
        let server = Listening::start(&mut command, "http://");
        Self { base: server.line.trim().to_owned(), _server: server }
    }

    fn poke(&self, what: &str, body: &Value) {
        let (status, text) = http("POST", &self.base, &format!("/_fake/{what}"), Some(body));
        assert_eq!(status, 200, "{text}");
    }
}

fn sign_in(browser: &Browser, base: &str, token: &str) {
    browser.open(base);
    browser.wait("document.activeElement?.id === 'token'");
    browser.keys(&[token, "Enter"]);
    browser.wait("document.querySelector('header.top')");
}

fn go(browser: &Browser, hash: &str) {
    browser.run(&format!("location.hash = {}", json!(hash)));
}

/// What has to be true of every page that anybody saw: no error, nothing from elsewhere, nothing kept.
fn nothing_to_complain(browser: &Browser) {
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let foreign = browser.run(
        "return performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith(location.origin))",
    );
    assert_eq!(foreign, json!([]));
    assert_eq!(
        browser.run("return [localStorage.length, sessionStorage.length, document.cookie]"),
        json!([0, 0, ""])
    );
}

#[test]
fn somebody_finds_what_is_broken_and_tests_a_key() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    browser.open(&fake.base);
    browser.wait_text("h1", "providerd");
    browser.keys(&["not-the-token", "Enter"]);
    browser.wait_text(".sign-error", "not accepted");
    // Refused is what it should be, and the browser logs every 401.
    assert!(browser.complaints().iter().all(|line| line.contains("401")));
    browser.run("document.getElementById('token').value = ''");
    browser.keys(&[TOKEN, "Enter"]);

    browser.wait_text("h1", "2 of 12 providers are down");
    browser.wait_text(".attention", "groq-eu Provider down");
    browser.wait_text(".attention", "providerd apply --confirm-prune 3fa9c1d20b7e");
    browser.wait_text(".attention-known", "down for");

    browser.click(".gauge-legend a[href='#/providers?f=unhealthy']");
    browser.wait_text(".shown", "2 of 12 shown");
    browser.wait("document.querySelectorAll('tr.row').length === 2");
    browser.wait_text("tr.row", "groq-eu");
    browser.wait("document.querySelector('tr.row .strip path.bar-bad')");

    browser.click("tr.row[data-name='groq-eu'] a");
    browser.wait_text("h1", "groq-eu");
    browser.wait_text(".answers", "Unhealthy");
    browser.wait_text(".answers", "since");
    browser.wait_text(".detail", "local.toml:42");
    browser.wait_text(".detail", "fake190...o8ub");
    browser.wait("document.querySelector('.plot path.p50')");
    // Text of a manifest is text, whatever it looks like.
    browser.wait_text(".detail", "Made-up provider <b>groq-eu</b>");
    assert_eq!(browser.run("return document.querySelectorAll('main b, main script').length"), json!(0));

    browser.click("[data-action='test']");
    browser.wait_text(".result", "Valid, 15 models found, 450 ms");
    browser.click("[data-action='sync']");
    browser.wait_text(".result", "looks at manifests");
    browser.click("[data-span='month']");
    browser.wait_text(".readout", "30 days");

    go(&browser, "#/providers/anthropic-prod");
    browser.wait_text(".answers", "401 invalid_api_key, twice");
    browser.click("[data-action='test']");
    browser.wait_text(".result.bad", "Not proven: 401 invalid_api_key");
    fake.poke("tested", &json!({}));
    browser.click("[data-action='test']");
    browser.wait_text(".result.bad", "at most 10 key tests a minute. Try again in 37 s.");
    assert!(browser.complaints().iter().all(|line| line.contains("429")));
    go(&browser, "#/providers/nobody");
    browser.wait_text(".empty", "There is no such provider");
    assert!(browser.complaints().iter().all(|line| line.contains("404")));
    nothing_to_complain(&browser);
}

#[test]
fn what_is_held_back_and_what_routes_serve_is_said() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    go(&browser, "#/held");
    browser.wait_text("article", "Prune of 4 providers");
    browser.wait_text("article .command", "providerd apply --confirm-prune 3fa9c1d20b7e");
    browser.wait_text("article", "eu/west.toml:31:12");
    browser.wait_text("article", "precision × enterprise");
    browser.click("article .command .copy");
    browser.wait("/Copied|Select it/.test(document.querySelector('article .command .copy').innerText)");
    go(&browser, "#/routes");
    browser.wait_text(".cell.empty", "Empty: requests find no model");
    browser.wait_text(".cell.down", "No model here can answer");
    browser.wait_text(".head", "4 cells without a working model");
    let order = browser.run(
        "return [...document.querySelector('.cell .route-list').querySelectorAll('.route-model')].map(e => e.innerText)",
    );
    assert_eq!(order, json!(["ollama-7b", "together-70b", "cohere-large", "groq-mini"]));
    nothing_to_complain(&browser);
}

#[test]
fn who_would_answer_is_explained() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    go(&browser, "#/routes");
    browser.click("[aria-label='Explain balanced × free']");
    browser.wait("location.hash === '#/routes/explain?level=balanced&tier=free'");
    browser.wait_text(".explain-verdict", "would answer first");
    browser.wait_text(".step", "balanced × free");
    // Switched off in this cell: not asked, and why.
    browser.wait_text(".explained .off", "switched off");
    browser.wait_text(".explain-foot", "providerd routes explain --power balanced --tier free");
    let set = |id: &str, value: &str| {
        browser.run(&format!(
            "const field = document.getElementById('{id}'); field.value = {}; \
             field.dispatchEvent(new Event(field.tagName === 'SELECT' ? 'change' : 'input', {{ bubbles: true }}))",
            json!(value)
        ));
    };
    // A key that does not work keeps its provider out, with the provider's own words.
    set("ask-model", "anthropic-prod/anthropic-7b");
    browser.wait_text(".explain-verdict", "Nothing would answer");
    browser.wait_text(".explained .off", "its key does not work");
    browser.wait_text(".explained .off", "401 invalid_api_key, twice");
    browser.wait_text(".explain-error", "The caller gets 503 no_upstream.");
    browser.wait("location.hash.includes('model=anthropic-prod%2Fanthropic-7b')");
    set("ask-model", "");
    // A cell that is empty gives way to the next wider one.
    set("ask-level", "eco");
    set("ask-tier", "enterprise");
    browser.wait_text(".step", "eco × enterprise empty");
    browser.wait_text(".step.good", "eco × all");
    set("ask-consumer", "no-such");
    browser.wait_text(".empty", "there is no consumer `no-such`");
    assert!(browser.complaints().iter().all(|line| line.contains("422")));
    set("ask-consumer", "");
    browser.click("#ask-private");
    browser.wait_text(".explained .off", "not inside our walls");
    nothing_to_complain(&browser);
}

#[test]
fn usage_is_shown_by_what_is_asked_and_budgets_with_what_is_left() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    go(&browser, "#/usage");
    browser.wait_text("#usage-over-time", "Cost over 24 hours, by provider");
    browser.wait("document.querySelectorAll('.timechart .fill').length === 7");
    browser.wait_text(".series", "others");
    browser.wait_text(".usage table", "ollama-cloud");
    browser.wait_text(".tiles", "First token");
    browser.wait_text(".budget.bad", "batch a day Spent");
    browser.wait_text(".budget.warn", "86 % of $0.50 used");
    browser.wait_text(".limits", "each user of tier free: 20 requests a minute");
    browser.click("[data-choice='model']");
    browser.click("[data-choice='365d']");
    browser.click("[data-choice='tokens']");
    browser.wait_text("#usage-over-time", "Tokens over a year, by model");
    browser.wait("location.hash === '#/usage?range=365d&by=model&value=tokens'");
    browser.wait_text(".usage table", "ollama-cloud/ollama-7b");
    // The figures of the drawing, for who cannot see it.
    browser.run("document.querySelector('.timeline .plot').focus()");
    browser.keys(&["ArrowLeft"]);
    browser.wait_text(".readout", "week of");
    browser.run("document.querySelector('.timeline .figures').open = true");
    browser.wait("document.querySelectorAll('.timeline .figures tbody tr').length > 40");
    browser.run("window.saved = null; URL.createObjectURL = blob => { blob.text().then(text => window.saved = text); return '#' }");
    browser.click("[data-action='csv']");
    browser.wait("window.saved?.startsWith('week,model,requests,cost_usd\\n') && window.saved.split('\\n').length > 100");
    browser.click("[data-choice='user']");
    browser.wait_text(".usage table", "no user named");
    nothing_to_complain(&browser);
}

#[test]
fn a_provider_is_checked_and_paused_from_its_page() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    go(&browser, "#/providers/groq-eu");
    browser.wait_text(".answers", "Unhealthy");
    browser.click("[data-span='recent']");
    browser.wait_text(".history-caption", "The last 60 checks, 9 failed");
    browser.wait_text(".checks", "(3 in a row)");
    browser.click("[data-span='six']");
    browser.wait_text(".readout", "6 h");
    browser.click("[data-action='check']");
    browser.wait_text(".result.good", "It is being checked");
    browser.wait_text("ol.events", "Admin call: check");
    browser.click("[data-action='pause']");
    browser.wait_text("[data-action='pause']", "Resume checks");
    browser.click("[data-action='check']");
    browser.wait_text(".result.warn", "its checks are paused");
    browser.click("[data-action='pause']");
    browser.wait_text("[data-action='pause']", "Pause checks");
    nothing_to_complain(&browser);
}

#[test]
fn a_token_is_kept_for_the_tab_where_that_is_asked_and_odd_addresses_are_said() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    browser.open(&fake.base);
    browser.wait("document.activeElement?.id === 'token'");
    browser.keys(&[TOKEN]);
    browser.click("#keep");
    browser.click(".sign-card [type='submit']");
    browser.wait("document.querySelector('header.top')");
    go(&browser, "#/nonsense");
    browser.wait_text(".empty", "There is no such page");
    browser.run("location.reload()");
    browser.wait_text(".empty", "Nothing is at #/nonsense.");
    go(&browser, "#/models?q=groq");
    browser.wait_text(".shown", "of ");
    browser.wait_text("table", "groq-7b");
    browser.click("[aria-label='Sign out']");
    browser.wait("document.activeElement?.id === 'token' && sessionStorage.length === 0");
    browser.run("location.reload()");
    browser.wait("document.activeElement?.id === 'token'");
    nothing_to_complain(&browser);
}

#[test]
fn an_event_arrives_by_itself() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    browser.wait_text("h1", "2 of 12 providers are down");
    browser.wait_text(".chip-status", "Live");
    let event = json!({
        "kind": "health", "provider": "openrouter", "reason": "HTTP 503 (3 in a row)",
        "detail": { "from": "healthy", "to": "unhealthy" }, "set": { "health": "unhealthy" },
    });
    fake.poke("event", &event);
    browser.wait_text("ol.events > :first-child", "openrouter");
    browser.wait_text("h1", "3 of 12 providers are down");

    go(&browser, "#/events");
    browser.wait_text("ol.events > :first-child", "HTTP 503 (3 in a row)");
    browser.wait_text(".live", "Following live");
    let change = json!({
        "kind": "change", "provider": "mistral-fr", "reason": "declared", "actor": "00c0ffee",
        "detail": { "changes": [{ "kind": "provider", "action": "update", "name": "mistral-fr", "fields": [
            { "field": "priority", "old": 50, "new": 61, "cause": "declared" },
            { "field": "config.note", "old": null, "new": "<img src=x onerror=alert(1)>", "cause": "declared" },
        ] }] },
    });
    fake.poke("event", &change);
    browser.wait_text("ol.events > :first-child .field del", "50");
    browser.wait_text("ol.events > :first-child .field ins", "61");
    browser.wait_text("ol.events > :first-child", "<img src=x onerror=alert(1)>");
    assert_eq!(browser.run("return document.querySelectorAll('main img').length"), json!(0));
    browser.wait("document.getElementById('polite').textContent.includes('mistral-fr')");

    // Whoever reads further down is told, and not moved.
    browser.run("scrollTo(0, 900)");
    fake.poke("event", &event);
    browser.wait_text(".new-events", "1 new event");
    assert_eq!(browser.run("return scrollY"), json!(900));
    browser.run("document.querySelector('.new-events').click()");
    browser.wait("scrollY === 0 && document.querySelector('ol.events > :first-child .mono').innerText === 'openrouter'");

    // A stream that breaks is picked up where it was left.
    fake.poke("cut", &json!({}));
    fake.poke("event", &change);
    browser.wait_text("ol.events > :first-child", "mistral-fr");

    browser.run("const s = document.querySelector('select'); s.value = 'key_test'; s.dispatchEvent(new Event('change'))");
    browser.wait("document.querySelectorAll('ol.events > li').length === 1 && location.hash === '#/events?kind=key_test'");
    nothing_to_complain(&browser);
}

#[test]
fn a_lost_connection_and_a_lost_token_are_said() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    go(&browser, "#/providers/groq-eu");
    browser.wait_text(".answers", "Unhealthy");
    fake.poke("fail", &json!({ "status": 503 }));
    fake.poke("cut", &json!({}));
    browser.wait_text(".banner", "Connection lost.");
    browser.wait("document.getElementById('loud').textContent.includes('Connection lost')");
    browser.shot("lost");
    browser.click("[data-action='test']");
    browser.wait_text(".result.bad", "made up");
    fake.poke("fail", &json!({ "status": 0 }));
    browser.wait("!document.querySelector('.banner')");
    browser.wait_text(".chip-status", "Live");

    let flags = json!({ "database": false, "suspended": true, "impaired": "9 of 12 hosts fail at once" });
    fake.poke("set", &flags);
    browser.wait_text(".banner", "The database cannot be reached.");
    browser.wait_text(".banner", "9 of 12 hosts fail at once");
    browser.wait_text(".banner .command", "providerd resume");

    fake.poke("fail", &json!({ "status": 401 }));
    browser.wait_text(".sign-error", "no longer accepted");
    fake.poke("fail", &json!({ "status": 0 }));
    browser.keys(&[TOKEN, "Enter"]);
    // Where somebody was, he is again.
    browser.wait_text("h1", "groq-eu");
    browser.run("location.reload()");
    browser.wait("document.activeElement?.id === 'token'");
    browser.complaints();
    nothing_to_complain(&browser);
}

#[test]
fn five_thousand_providers_do_not_lag() {
    let fake = Fake::new(5000);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    go(&browser, "#/providers");
    browser.wait_text(".shown", "5,000 shown");
    let seen = browser.run(
        "return new Promise(async done => {
            const names = new Set(), times = [], frame = () => new Promise(requestAnimationFrame);
            let most = 0, gaps = 0;
            for (let step = 0; step <= 100; step += 1) {
                const from = performance.now();
                scrollTo(0, (document.documentElement.scrollHeight - innerHeight) * step / 100);
                await frame(); await frame();
                times.push(performance.now() - from);
                const rows = [...document.querySelectorAll('tr.row')];
                most = Math.max(most, rows.length);
                const at = document.elementFromPoint(300, innerHeight / 2)?.closest('tr.row');
                gaps += at || step === 0 || step === 100 ? 0 : 1;
                rows.forEach(row => names.add(row.dataset.name));
            }
            times.sort((a, b) => a - b);
            const last = [...document.querySelectorAll('tr.row')].at(-1).ariaRowIndex;
            done({ most, gaps, seen: names.size, median: times[50], last });
        })",
    );
    assert!(seen["most"].as_u64().unwrap() < 60, "{seen}");
    assert_eq!((&seen["gaps"], &seen["last"]), (&json!(0), &json!("5001")), "{seen}");
    // Two frames are 33 ms; the rest is room for a machine that does other things as well.
    assert!(seen["median"].as_f64().unwrap() < 250.0, "{seen}");

    browser.keys(&["/"]);
    browser.keys(&["openai-prod-4321"]);
    browser.wait_text(".shown", "1 of 5,000 shown");
    browser.keys(&["Escape"]);
    browser.wait_text(".shown", "5,000 shown");
    browser.keys(&["ArrowDown"]);
    browser.wait("document.activeElement.closest('tr')?.ariaRowIndex === '2'");
    browser.keys(&["End"]);
    browser.wait("document.activeElement.closest('tr')?.ariaRowIndex === '5001'");
    browser.wait(
        "(box => box.top >= 0 && box.bottom <= innerHeight)(document.activeElement.getBoundingClientRect())",
    );
    browser.viewport(390, 844);
    browser.keys(&["Home", "PageDown"]);
    browser.wait("document.activeElement.closest('tr.row')");
    browser.wait("document.querySelectorAll('tr.row').length < 60");
    nothing_to_complain(&browser);
}

#[test]
fn an_outage_of_thousands_does_not_stop_the_page() {
    let fake = Fake::new(5000);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    browser.wait_text(".chip-status", "Live");
    for hash in ["#/", "#/events"] {
        go(&browser, hash);
        browser.wait("!document.querySelector('.skeleton')");
        // The longest time that nothing else could be done.
        browser.run(
            "window.longest = 0; let last = performance.now(); clearInterval(window.beat);
             window.beat = setInterval(() => { const now = performance.now(); \
             window.longest = Math.max(window.longest, now - last); last = now }, 10)",
        );
        fake.poke("storm", &json!({ "events": 1500 }));
        browser.wait_text("ol.events > :first-child", "HTTP 503, number 1499");
        browser.wait_text(".tab-mark", "1,5");
        let longest = browser.run("return window.longest").as_f64().unwrap();
        assert!(longest < 3000.0, "{hash}: {longest} ms");
        println!("{hash}: {longest:.0} ms");
    }
    let calls = http("GET", &fake.base, "/_fake/calls", None).1;
    let details = calls.matches("GET /api/v1/providers/").count();
    assert!(details < 50, "{details} single rows were asked for");
    nothing_to_complain(&browser);
}

#[test]
fn the_keyboard_is_enough() {
    let fake = Fake::new(12);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    browser.wait_text("h1", "are down");
    browser.wait("document.activeElement.tagName === 'H1'");
    // As after a click beside everything: from the top.
    browser.run("document.body.tabIndex = -1; document.body.focus()");
    browser.keys(&["Tab"]);
    browser.wait("document.activeElement.className === 'skip'");
    browser.wait("document.activeElement.getBoundingClientRect().top >= 0");
    browser.keys(&["Enter"]);
    browser.wait("document.activeElement.tagName === 'H1'");

    browser.keys(&["/"]);
    browser.wait("document.activeElement.id === 'search'");
    browser.keys(&["open"]);
    browser.wait_text(".shown", "of 12 shown");
    browser.keys(&["ArrowDown", "ArrowDown"]);
    browser.wait("document.activeElement.closest('tr')?.ariaRowIndex === '3'");
    let name = browser.run("return document.activeElement.innerText");
    browser.keys(&["Enter"]);
    browser.wait(&format!(
        "document.activeElement.tagName === 'H1' && document.activeElement.innerText === {name}"
    ));
    browser.wait("document.querySelector('.plot')");
    for action in ["pause", "sync", "check", "test"] {
        browser.keys(&["Tab"]);
        browser.wait(&format!("document.activeElement.dataset.action === '{action}'"));
    }
    browser.keys(&["Enter"]);
    browser.wait("/Valid|Not proven/.test(document.querySelector('.result').innerText)");
    browser.wait("document.activeElement.dataset.action === 'test'");
    browser.run("document.querySelector('.plot').focus()");
    browser.keys(&["ArrowLeft"]);
    browser.wait("document.querySelector('.readout').innerText.includes('–')");
    browser.keys(&["Escape", "Escape"]);
    browser.wait(
        "location.hash.startsWith('#/providers?q=open') && document.getElementById('search').value === 'open'",
    );
    browser.keys(&["5"]);
    browser.wait("document.title === '(2 down) Events · providerd'");
    browser.keys(&["?"]);
    browser.wait_text("dialog", "Keyboard");
    browser.keys(&["Escape"]);
    browser.wait("!document.querySelector('dialog')");
    nothing_to_complain(&browser);
}

#[test]
fn nothing_there_yet_is_said_kindly() {
    let fake = Fake::new(0);
    let browser = Browser::new();
    sign_in(&browser, &fake.base, TOKEN);
    let expected = [
        ("#/", ".verdict", "No providers yet"),
        ("#/", ".panel", "Nothing needs attention"),
        ("#/providers", ".empty", "No providers yet"),
        ("#/routes", ".empty", "No routes"),
        ("#/routes/explain", ".explain-error", "no_upstream"),
        ("#/usage", ".plot-none", "No cost in this time."),
        ("#/usage", ".empty", "No budgets"),
        ("#/models", ".empty", "No models yet"),
        ("#/events", ".empty", "No events yet"),
        ("#/held", ".empty", "Nothing is held back"),
    ];
    for (hash, selector, text) in expected {
        go(&browser, hash);
        browser.wait_text(selector, text);
    }
    nothing_to_complain(&browser);
}

/// Everything that axe finds on what is shown, of an impact that matters to somebody.
fn barriers(browser: &Browser, axe: &str) -> Vec<String> {
    let found = browser.run(&format!("{axe}; return axe.run(document)"));
    let mut barriers = Vec::new();
    for violation in found["violations"].as_array().expect("a report") {
        let impact = violation["impact"].as_str().unwrap_or_default();
        if matches!(impact, "moderate" | "serious" | "critical") {
            for node in violation["nodes"].as_array().into_iter().flatten() {
                barriers.push(format!(
                    "{impact} {}: {} {}",
                    violation["id"], node["target"], node["failureSummary"]
                ));
            }
        }
    }
    barriers
}

#[test]
#[ignore = "needs axe-core, which .ci/run installs: scripts/setup test ci"]
fn no_barriers_in_light_and_dark_wide_and_narrow() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page/node_modules/axe-core/axe.min.js");
    let axe = std::fs::read_to_string(path)
        .unwrap_or_else(|error| panic!("{path}: {error}\nhint: scripts/setup test ci installs it"));
    let fake = Fake::new(12);
    let browser = Browser::new();
    let views = [
        "#/",
        "#/providers",
        "#/providers/groq-eu",
        "#/providers/mistral-fr",
        "#/routes",
        "#/routes/explain?level=balanced&tier=free",
        "#/routes/explain?level=precision&tier=free",
        "#/usage",
        "#/usage?range=365d&by=model&value=tokens",
        "#/models",
        "#/nonsense",
        "#/events",
        "#/held",
    ];
    for (scheme, motion) in [("light", "no-preference"), ("dark", "reduce")] {
        browser.prefers(scheme, motion);
        for (width, height) in [(1440, 900), (820, 1180), (390, 844), (320, 568)] {
            browser.viewport(width, height);
            browser.open(&fake.base);
            browser.wait("document.activeElement?.id === 'token'");
            let what = format!("{scheme} {width}");
            assert_eq!(barriers(&browser, &axe), Vec::<String>::new(), "signing in, {what}");
            browser.keys(&[TOKEN, "Enter"]);
            browser.wait("document.querySelector('header.top')");
            for hash in views {
                go(&browser, hash);
                browser.wait("!document.querySelector('.skeleton')");
                let name = hash.trim_matches(['#', '/']).replace(['/', '?', '&', '='], "-");
                browser
                    .shot(&format!("{scheme}-{width}-{}", if name.is_empty() { "overview" } else { &name }));
                // axe at each size of its own would say the same things three times over.
                if width == 1440 || width == 390 {
                    assert_eq!(barriers(&browser, &axe), Vec::<String>::new(), "{hash}, {what}");
                }
                // A phone zooms out over what is too wide: the window itself grows there.
                let wide = browser.run(&format!(
                    "return Math.max(document.documentElement.scrollWidth, innerWidth) - {width}"
                ));
                assert!(wide.as_i64().unwrap() <= 0, "{hash}, {what}: {wide} px too wide");
            }
        }
    }
    nothing_to_complain(&browser);
    // The button goes the other way than the system.
    browser.run("document.querySelector('[aria-label=\"Theme\"]').click()");
    let chosen = browser.run("return [document.documentElement.dataset.theme, localStorage.getItem('providerd-theme'), localStorage.length]");
    assert_eq!(chosen, json!(["light", "light", 1]));
}

/// Every view of a server whose data nobody knows: each comes to an end of loading, without an error.
fn tour(browser: &Browser, base: &str, token: &str) {
    sign_in(browser, base, token);
    for (hash, title) in [
        ("#/", "Overview"),
        ("#/providers", "Providers"),
        ("#/routes", "Routes"),
        ("#/routes/explain", "Explain a route"),
        ("#/usage", "Usage"),
        ("#/models", "Models"),
        ("#/events", "Events"),
        ("#/held", "Held back"),
    ] {
        go(browser, hash);
        browser.wait(&format!("document.title.endsWith({})", json!(format!("{title} · providerd"))));
        browser.wait("!document.querySelector('.skeleton')");
        assert_eq!(
            browser.run("return document.querySelector('.empty.bad')?.innerText ?? null"),
            Value::Null,
            "{hash}"
        );
        browser.shot(&format!("tour-{}", title.to_lowercase().replace(' ', "-")));
    }
    browser.wait_text(".chip-status", "Live");
}

#[test]
fn tour_of_another_server() {
    let (Ok(base), Ok(token)) = (std::env::var("PAGE_URL"), std::env::var("PAGE_TOKEN")) else { return };
    let browser = Browser::new();
    tour(&browser, base.trim_end_matches('/'), &token);
    nothing_to_complain(&browser);
}

/// Where a daemon of a [`Lab`] listens, from its log.
fn listens(log: &str) -> String {
    let (_, rest) = log.rsplit_once("\"listen\":\"").expect("a line that says where");
    format!("http://{}", rest.split('"').next().unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_daemon_is_shown_as_it_is() {
    let lab = crate::support::lab::Lab::new().await;
    let many: String = (1..=5).map(|n| crate::support::lab::provider(&format!("many-{n}"), n)).collect();
    lab.write("many.toml", &many);
    lab.write("alpha.toml", &crate::support::lab::provider("alpha", 7));
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_SERVER__TOKEN_SHA256", crate::support::http::sha256(TOKEN));
    });
    daemon.wait_ready().await;
    let base = listens(&daemon.log());
    let browser = Browser::new();
    tour(&browser, &base, TOKEN);

    go(&browser, "#/providers");
    browser.wait_text(".shown", "6 shown");
    browser.keys(&["/", "alpha"]);
    browser.wait_text(".shown", "1 of 6 shown");
    browser.wait_text("tr.row", "alpha.toml:1");
    browser.keys(&["Enter"]);
    browser.wait_text("h1", "alpha");
    browser.wait_text(".answers", "Synced");
    browser.wait_text(".detail", "https://alpha.example.com/v1");
    browser.wait_text(".detail", "alpha-small");
    browser.wait_text("ol.events", "Provider created");
    browser.click("[data-action='sync']");
    browser.wait_text(".result.good", "looks at manifests");
    browser.click("[data-action='test']");
    browser.wait("/Valid|Not proven|bad/.test(document.querySelector('.result').innerText + document.querySelector('.result').className)");
    browser.shot("real-provider");

    // An edit shows by itself, field by field.
    go(&browser, "#/events");
    browser.wait_text(".live", "Following live");
    lab.write("alpha.toml", &crate::support::lab::provider("alpha", 8));
    browser.wait_text("ol.events > :first-child", "alpha");
    browser.wait_text("ol.events > :first-child .field del", "7");
    browser.wait_text("ol.events > :first-child .field ins", "8");
    browser.shot("real-events");

    go(&browser, "#/routes");
    browser.wait_text(".cell .route-list", "alpha-small");

    // Too much to delete without a word: the page has the words.
    lab.remove("many.toml");
    go(&browser, "#/held");
    browser.wait_text("article", "Prune of 5 providers");
    browser.wait_text("article .command", "providerd apply --confirm-prune ");
    browser.shot("real-held");
    let words = browser.run("return document.querySelector('article .command code').innerText");
    let words: Vec<String> =
        words.as_str().unwrap_or_default().split(' ').skip(1).map(str::to_owned).collect();
    lab.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).expect(0);
    browser.click("header [aria-label^='Sync now']");
    browser.wait_text(".empty", "Nothing is held back");
    go(&browser, "#/providers");
    browser.wait_text(".shown", "1 shown");
    // A key test of a provider without a key may be refused, and the browser logs that.
    let complaints = browser.complaints();
    assert!(complaints.iter().all(|line| line.contains("/keys/test")), "{complaints:?}");
    nothing_to_complain(&browser);
    assert_eq!(daemon.stop(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_outage_is_seen_to_come_and_go() {
    let lab = crate::support::lab::Lab::new().await;
    let provider = crate::support::fake::Fake::start().await;
    let key = lab.dir.path().join("alpha.key");
    std::fs::write(&key, crate::support::fake::KEY).unwrap();
    let reference = format!("{{ file = \"{}\" }}", key.display());
    lab.write("alpha.toml", &provider.manifest("alpha", &reference, ""));
    let mut daemon = lab.daemon_with(|command| {
        command.env("PROVIDERD_SERVER__TOKEN_SHA256", crate::support::http::sha256(TOKEN));
        command.env("PROVIDERD_HEALTH__ENABLED", "true").env("PROVIDERD_HEALTH__INTERVAL", "1s");
    });
    daemon.wait_ready().await;
    let browser = Browser::new();
    sign_in(&browser, &listens(&daemon.log()), TOKEN);
    browser.wait_text("h1", "The only provider is well");
    browser.wait_text(".verdict", "Nothing needs attention.");
    browser.wait_text(".gauge-legend", "1 Valid");

    provider.set_status(503);
    browser.wait_text("h1", "The only provider is down");
    browser.wait_text(".attention", "alpha Provider down");
    browser.wait_text(".attention-known", "down for");
    browser.wait("document.title.startsWith('(1 down)')");
    browser.shot("outage-overview");
    browser.click(".attention a");
    browser.wait_text(".answers", "Unhealthy");
    browser.wait_text(".answers", "since");
    browser.wait_text(".answers", "last proven");
    browser.wait_text("ol.events", "Healthy → Unhealthy");
    browser.wait("document.querySelector('.plot .bar-bad')");
    browser.shot("outage-provider");
    browser.click("[data-action='test']");
    browser.wait_text(".result.bad", "Not proven");

    provider.set_status(200);
    browser.click("[data-action='test']");
    browser.wait_text(".result.good", "Valid, 2 models found");
    let text = browser.run("return document.documentElement.outerHTML");
    assert!(!text.as_str().unwrap().contains(crate::support::fake::KEY), "the key is on the page");
    nothing_to_complain(&browser);
    assert_eq!(daemon.stop(), 0);
}
