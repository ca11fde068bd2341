//! Sessions, commands, files and audits on the page.

use std::fs;

use serde_json::json;
use testkit::chromium::Screen;
use testkit::deadline::wait_for;

use crate::fixture::{Page, TOKEN};

testkit::trials! {
    crate::in_browser:
        a_wrong_token_shows_the_error,
        a_session_is_created_and_stopped,
        a_refusal_is_shown_with_its_detail,
        output_is_text,
        a_command_is_cancelled,
        the_audit_is_shown_and_verified,
        a_lost_server_is_reported;
    crate::on_engine:
        a_file_makes_the_round_trip,
}

fn a_wrong_token_shows_the_error() {
    let mut page = Page::open("process", Screen::WIDE);
    assert_eq!(page.text("error"), "");
    page.sign_in("wrong");
    page.wait("$('error').checkVisibility() && $('error').textContent.length > 5");
    assert_eq!(page.evaluate("$('error').role"), "alert");
    assert_eq!(page.evaluate("$('signed-in').hidden"), true);
    assert_eq!(page.evaluate("sessionStorage.length"), 0);
    let complaints = page.complaints();
    assert!(
        complaints.len() == 1 && complaints[0].contains("401"),
        "{complaints:?}"
    );
    page.sign_in(TOKEN);
    page.wait("!$('signed-in').hidden && $('error').textContent === ''");
    assert_eq!(page.evaluate("$('no-sessions').checkVisibility()"), true);
    assert_eq!(
        page.evaluate("localStorage.length + document.cookie.length"),
        0
    );
    // The tab stays signed in, until the user signs out.
    page.reload();
    page.wait("!$('signed-in').hidden");
    page.click("sign-out");
    assert_eq!(page.evaluate("$('sign-in').checkVisibility()"), true);
    assert_eq!(page.evaluate("sessionStorage.length"), 0);
    page.assert_clean();
}

fn a_session_is_created_and_stopped() {
    let mut page = Page::with_session(Screen::WIDE);
    let row = "document.querySelector('#sessions li')";
    assert_eq!(
        page.evaluate(&format!("[{row}.querySelector('.pick').textContent, {row}.querySelector('.running').textContent]")),
        json!(["local process", "running"])
    );
    page.create_session("");
    page.wait("document.querySelectorAll('#sessions li').length === 2");
    page.evaluate("document.querySelector('#sessions .on .stop').click()");
    page.wait("document.querySelector('#sessions .on .ended') !== null");
    assert_eq!(
        page.evaluate("document.querySelector('#sessions .on .stop').checkVisibility()"),
        false
    );
    assert_eq!(
        page.evaluate("document.querySelectorAll('#sessions .running').length"),
        1
    );
    assert!(page.text("facts").contains("requested"));
    page.assert_clean();
}

fn a_refusal_is_shown_with_its_detail() {
    let mut page = Page::signed_in("process", Screen::WIDE);
    page.fill("image", "debian");
    page.click("create-button");
    page.wait("$('error').textContent.includes('image')");
    assert_eq!(page.evaluate("$('session').hidden"), true);
    // The next action removes the error.
    page.create_session("");
    assert_eq!(page.text("error"), "");
}

fn output_is_text() {
    let mut page = Page::with_session(Screen::WIDE);
    let hostile = "<img src=x onerror=alert(1)>";
    page.run(&format!("echo '{hostile}'; echo '<b>err</b>' >&2; exit 5"));
    assert_eq!(page.text("stdout"), format!("{hostile}\n"));
    assert_eq!(page.text("stderr"), "<b>err</b>\n");
    assert!(page.text("exec-state").contains("code 5"));
    page.run(r"printf 'a\377b \303\251'; head -c 2000000 /dev/zero | tr '\0' x >&2");
    assert_eq!(page.text("stdout"), "a\u{fffd}b é");
    let shown = page.evaluate("$('stderr').textContent.length");
    assert!(
        (1 << 20..1_050_000).contains(&shown.as_u64().unwrap()),
        "{shown}"
    );
    assert!(page.text("stderr").ends_with("(the rest is not shown)"));
    page.click("audit-button");
    page.wait("!$('audit').hidden");
    let elements = "document.querySelectorAll('pre *, img, script:not([src])').length";
    assert_eq!(page.evaluate(elements), 0);
    page.assert_clean();
}

fn a_command_is_cancelled() {
    let mut page = Page::with_session(Screen::WIDE);
    page.fill("command", "echo begun; exec sleep 1000");
    page.click("exec-button");
    page.wait("$('stdout').textContent === 'begun\\n'");
    page.click("cancel-button");
    page.wait("$('exec-state').textContent === 'Cancelled.'");
    page.wait("$('cancel-button').hidden && $('exec-button').ariaDisabled !== 'true'");
    page.run("echo again");
    assert_eq!(page.text("stdout"), "again\n");
    page.assert_clean();
}

fn a_file_makes_the_round_trip() {
    let mut page = Page::with_terminal(Screen::WIDE);
    let [sent, downloads] = ["sent", "downloads"].map(|name| page.server.file(name));
    let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    fs::write(&sent, &content).unwrap();
    fs::create_dir(&downloads).unwrap();
    page.call(
        "Page.setDownloadBehavior",
        &json!({"behavior": "allow", "downloadPath": downloads}),
    );
    page.choose_file("#file", &sent);
    page.fill("upload-path", "/tmp/remote");
    page.click("upload-button");
    page.wait("$('file-state').textContent.startsWith('Uploaded 300000 bytes')");
    page.fill("download-path", "/tmp/remote");
    page.type_text("\n");
    page.wait("$('file-state').textContent === 'Downloaded 300000 bytes.'");
    wait_for("the file", || {
        fs::read(downloads.join("remote")).is_ok_and(|received| received == content)
    });
    page.assert_clean();
}

fn the_audit_is_shown_and_verified() {
    let mut page = Page::with_session(Screen::WIDE);
    page.run("echo audited-$((40+2))");
    page.wait("$('audit-of').options.length === 2");
    page.evaluate("$('audit-of').selectedIndex = 1");
    page.click("audit-button");
    page.wait("$('audit').textContent.includes('audited-42')");
    assert!(page.text("audit-state").ends_with("records."));
    page.evaluate("document.querySelector('#sessions .stop').click()");
    page.wait("document.querySelector('#sessions .ended') !== null");
    page.click("verify-button");
    page.wait("!$('verified').hidden");
    assert_eq!(page.text("verified-caption"), "Verified");
    let states = "[...document.querySelectorAll('#verified-files tr')].map((row) => row.children[1].textContent)";
    assert_eq!(page.evaluate(states), json!(["sealed", "sealed"]));
    page.assert_clean();
}

fn a_lost_server_is_reported() {
    let mut page = Page::with_session(Screen::WIDE);
    page.server.kill();
    page.wait("$('connection').textContent.includes('does not answer')");
    page.click("create-button");
    page.wait("$('error').textContent === 'The server does not answer.'");
}
