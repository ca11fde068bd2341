//! The page for people with a keyboard, a screen reader, a dark screen or a narrow one.

use std::collections::BTreeMap;

use testkit::chromium::Screen;

use crate::fixture::Page;

testkit::trials! {
    crate::in_browser:
        every_control_has_a_name_and_a_role,
        the_tab_key_reaches_every_control,
        text_has_enough_contrast,
        a_narrow_page_does_not_scroll_sideways,
}

/// A page that shows every part except for the terminal.
fn full(screen: Screen) -> Page {
    let mut page = Page::with_session(screen);
    page.fill_all();
    page
}

fn every_control_has_a_name_and_a_role() {
    let mut page = Page::open("process", Screen::WIDE);
    page.roles_of_controls();
    let mut page = full(Screen::WIDE);
    let roles = page.roles_of_controls();
    let expected = [
        ("RootWebArea", 1),
        ("button", 11),
        ("checkbox", 2),
        ("combobox", 1),
        ("option", 2),
        ("region", 3),
        ("textbox", 4),
    ];
    let expected = expected.map(|(role, count)| (role.to_owned(), count));
    assert_eq!(roles, BTreeMap::from(expected));
    page.assert_clean();
}

fn the_tab_key_reaches_every_control() {
    let mut page = Page::open("process", Screen::WIDE);
    page.evaluate("document.activeElement.blur()");
    assert_eq!(page.reach_controls("pre pre"), 2);
    let mut page = full(Screen::WIDE);
    page.evaluate(
        "document.querySelector('h1').tabIndex = -1, document.querySelector('h1').focus()",
    );
    let controls = page.reach_controls("pre pre");
    assert!(controls > 17, "{controls} controls");
    page.assert_clean();
}

fn text_has_enough_contrast() {
    for dark in [false, true] {
        let screen = Screen {
            dark,
            ..Screen::WIDE
        };
        let mut page = full(screen);
        let texts = page.check_contrast();
        assert!(texts > 50, "{texts} texts");
        page.fill("image", "debian");
        page.click("create-button");
        page.wait("$('error').textContent !== ''");
        page.check_contrast();
    }
}

fn a_narrow_page_does_not_scroll_sideways() {
    let mut page = Page::open("process", Screen::NARROW);
    page.check_width();
    page.keep_image("sign-in-360");
    let mut page = full(Screen::NARROW);
    page.run(&format!("echo {0}; echo '{0}' >&2", "x".repeat(400)));
    page.check_width();
    page.assert_clean();
}
