//! The terminal on the page, with real key events.

use testkit::chromium::Screen;

use crate::fixture::Page;

testkit::trials! {
    crate::on_engine:
        typed_commands_run_in_the_terminal,
        the_terminal_follows_the_window,
        a_lost_connection_can_be_opened_again,
        a_lost_server_closes_the_terminal,
        shift_and_escape_leave_the_terminal,
        the_terminal_is_accessible;
    crate::in_browser:
        a_refused_terminal_shows_the_reason,
}

const ESCAPE: u32 = 27;
const TAB: u32 = 9;

fn typed_commands_run_in_the_terminal() {
    let mut page = Page::with_terminal(Screen::WIDE);
    page.type_text("echo $((6*7))\n");
    page.wait_for_screen("42");
    page.type_text("printf '\\303\\251t\\303\\251-%s\\n' \"$TERM\"\n");
    page.wait_for_screen("été-xterm-256color");
    page.keep_image("terminal");
    page.type_text("exit 3\n");
    page.wait("$('terminal-state').textContent.toLowerCase().includes('exited with code 3')");
    assert_eq!(page.text("open-terminal"), "Open a terminal");
    page.wait_for_screen("42");
    page.open_terminal();
    page.type_text("echo $((7*7))\n");
    page.wait_for_screen("49");
    page.assert_clean();
}

fn a_lost_connection_can_be_opened_again() {
    let mut page = Page::with_terminal(Screen::WIDE);
    page.evaluate("terminal.socket.close()");
    page.wait("$('terminal-state').textContent.startsWith('The connection is lost')");
    assert_eq!(page.text("open-terminal"), "Connect again");
    page.open_terminal();
    page.type_text("echo $((6*7))\n");
    page.wait_for_screen("42");
    page.assert_clean();
}

fn shift_and_escape_leave_the_terminal() {
    let mut page = Page::with_terminal(Screen::WIDE);
    page.type_text("echo $((6*7))\n");
    page.wait_for_screen("42");
    let focus = "document.activeElement.id || document.activeElement.className";
    page.press("Tab", TAB);
    assert_eq!(page.evaluate(focus), "xterm-helper-textarea");
    page.press_with_shift("Escape", ESCAPE);
    assert_eq!(page.evaluate(focus), "close-terminal");
    page.type_text("\n");
    page.wait("$('terminal').hidden");
    assert_eq!(page.evaluate(focus), "open-terminal");
    page.assert_clean();
}

fn the_terminal_follows_the_window() {
    let mut page = Page::with_terminal(Screen::WIDE);
    page.type_text("echo size $(stty size)\n");
    let before = size(&mut page);
    page.wait_for_screen(&format!("size {before}"));
    page.resize(700);
    page.wait(&format!(
        "terminal.screen.cols < {}",
        before.split(' ').nth(1).unwrap()
    ));
    let after = size(&mut page);
    page.type_text("clear; echo size $(stty size)\n");
    page.wait_for_screen(&format!("size {after}"));
    page.assert_clean();
}

/// The rows and columns of the terminal on the page.
fn size(page: &mut Page) -> String {
    let size = page.evaluate("`${terminal.screen.rows} ${terminal.screen.cols}`");
    size.as_str().unwrap().into()
}

fn a_lost_server_closes_the_terminal() {
    let mut page = Page::with_terminal(Screen::WIDE);
    page.server.kill();
    page.wait("$('terminal-state').textContent.startsWith('The connection is lost')");
    page.click("open-terminal");
    page.wait("$('terminal-state').textContent.endsWith('the server does not answer.')");
}

fn the_terminal_is_accessible() {
    for (name, screen) in [
        ("light", Screen::WIDE),
        (
            "dark",
            Screen {
                dark: true,
                ..Screen::WIDE
            },
        ),
        ("360", Screen::NARROW),
    ] {
        let mut page = Page::with_terminal(screen);
        page.type_text("echo $((6*7)) && ls\n");
        page.wait_for_screen("42");
        page.fill_all();
        page.keep_image(name);
        page.check_contrast();
        page.check_width();
        let roles = page.roles_of_controls();
        assert_eq!(roles["textbox"], 5, "{roles:?}");
        page.assert_clean();
    }
}

fn a_refused_terminal_shows_the_reason() {
    let mut page = Page::with_session(Screen::WIDE);
    page.click("open-terminal");
    page.wait("$('terminal-state').textContent.includes('local processes have no')");
    page.evaluate("document.querySelector('#sessions .stop').click()");
    page.wait("document.querySelector('#sessions .ended') !== null");
    page.click("open-terminal");
    page.wait("/cannot be opened: .*ended/.test($('terminal-state').textContent)");
}
