//! What each page is checked for: names, the Tab key, contrast, width.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Tab;

const TAB: u32 = 9;

#[allow(
    clippy::missing_panics_doc,
    reason = "each method panics if the browser fails, or the page fails the check"
)]
impl Tab {
    /// The roles of all controls, counted. Each control must have a name.
    pub fn roles_of_controls(&mut self) -> BTreeMap<String, usize> {
        self.call("Accessibility.enable", &json!({}));
        let tree = self.call("Accessibility.getFullAXTree", &json!({}));
        let mut roles = BTreeMap::new();
        for node in tree["nodes"].as_array().expect("nodes") {
            let properties = node["properties"].as_array().into_iter().flatten();
            let is_focusable =
                |one: &Value| one["name"] == "focusable" && one["value"]["value"] == true;
            if node["ignored"] == true || !properties.into_iter().any(is_focusable) {
                continue;
            }
            let name = node["name"]["value"].as_str().unwrap_or_default();
            assert!(!name.trim().is_empty(), "{node}");
            let role = node["role"]["value"].as_str().expect("a role");
            *roles.entry(role.to_owned()).or_default() += 1;
        }
        roles
    }

    /// Reaches every control with the Tab key, and returns their number.
    ///
    /// The focus must follow the order of the document, be visible, and leave the page at the end.
    /// Controls inside of `except`, a selector, are not counted.
    pub fn reach_controls(&mut self, except: &str) -> u64 {
        let all = self.evaluate(&format!(
            "window.all = [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex]')]
                .filter((one) => one.tabIndex >= 0 && !one.disabled && one.checkVisibility() && !one.closest('{except}')); all.length"
        ));
        let all = all.as_u64().expect("a number");
        let mut reached = Vec::new();
        for _ in 0..2 * all {
            self.press("Tab", TAB);
            let focused = self.evaluate(FOCUSED);
            if focused.is_null() {
                break;
            }
            assert!(focused["outline"].as_f64() >= Some(2.0), "{focused}");
            assert_eq!(focused["visible"], true, "{focused}");
            reached.extend(focused["index"].as_u64());
        }
        assert_eq!(reached, (0..all).collect::<Vec<_>>());
        all
    }

    /// Checks the contrast of every visible text, and returns the number of texts.
    pub fn check_contrast(&mut self) -> u64 {
        let found = self.evaluate(LEAST_CONTRAST);
        assert!(found["least"]["contrast"].as_f64() >= Some(4.5), "{found}");
        found["texts"].as_u64().expect("a number")
    }

    /// Checks that the page does not scroll sideways, and no control is outside of it.
    pub fn check_width(&mut self) {
        let found = self.evaluate(
            "({ page: document.documentElement.scrollWidth - document.documentElement.clientWidth,
                outside: [...document.querySelectorAll('a, button, input, select')].filter((one) => one.checkVisibility())
                    .map((one) => [one.outerHTML.slice(0, 80), one.getBoundingClientRect()])
                    .filter(([, box]) => box.left < 0 || box.right > innerWidth).map(([html]) => html) })",
        );
        assert_eq!(found, json!({"page": 0, "outside": []}));
    }
}

/// The control with the focus, or null.
const FOCUSED: &str = "(() => {
    const one = document.activeElement, style = getComputedStyle(one);
    if (one === document.body) return null;
    const box = one.getBoundingClientRect();
    return { index: all.indexOf(one), text: one.outerHTML.slice(0, 80),
        outline: style.outlineStyle === 'none' ? 0 : parseFloat(style.outlineWidth),
        visible: box.bottom > 0 && box.top < innerHeight && box.right > 0 && box.left < innerWidth };
})()";

/// The text with the least contrast to its background, of texts that the page colors.
///
/// A background that a program chose is not the page's. A disabled control is exempt.
const LEAST_CONTRAST: &str = r"(() => {
    const context = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
    const rgba = (color) => {
        context.clearRect(0, 0, 1, 1);
        context.fillStyle = color;
        context.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, alpha, below) => [0, 1, 2].map((i) => top[i] * alpha + below[i] * (1 - alpha));
    const light = (rgb) => {
        const linear = rgb.map((part) => part <= 10 ? part / 3294 : ((part / 255 + 0.055) / 1.055) ** 2.4);
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    };
    const backgroundOf = (element) => {
        if (!element) return [255, 255, 255];
        const [r, g, b, alpha] = rgba(getComputedStyle(element).backgroundColor);
        return alpha === 1 ? [r, g, b] : over([r, g, b], alpha, backgroundOf(element.parentElement));
    };
    const found = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode, element = text.parentElement;
        if (!text.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
        if (element.closest('script, style, noscript, :disabled, [style*=background-color]')) continue;
        const background = backgroundOf(element), color = rgba(getComputedStyle(element).color);
        let opacity = color[3];
        for (let one = element; one; one = one.parentElement) opacity *= getComputedStyle(one).opacity;
        const pair = [light(over(color, opacity, background)), light(background)].sort((a, b) => b - a);
        found.push({ contrast: (pair[0] + 0.05) / (pair[1] + 0.05), text: text.data.slice(0, 60),
            html: element.outerHTML.slice(0, 160) });
    }
    found.sort((a, b) => a.contrast - b.contrast);
    return { texts: found.length, least: found[0] };
})()";
