//! Platforms of images, as specs and engines name them.

use std::fmt;

use serde::Deserialize;
use serde_json::json;

/// A platform. An empty field is unknown, or not asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// Parses `os/architecture/variant`, of which the first two can stand alone.
    pub(super) fn parse(text: &str) -> Self {
        let mut parts = text.split('/').map(str::to_owned);
        let mut part = || parts.next().unwrap_or_default();
        let (mut os, mut architecture, variant) = (part(), part(), part());
        if architecture.is_empty() && !is_os(&os) {
            std::mem::swap(&mut os, &mut architecture);
        }
        Self {
            os,
            architecture,
            variant,
        }
        .normalized()
    }

    /// Reads the platform from the response to an inspection of an image.
    ///
    /// All of it is unknown if the response is malformed.
    pub(super) fn of_image(json: &[u8]) -> Self {
        let image: Self = serde_json::from_slice(json).unwrap_or_default();
        image.normalized()
    }

    fn normalized(self) -> Self {
        let mut variant = self.variant.to_ascii_lowercase();
        let architecture = match self.architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            "i386" | "i486" | "i586" | "i686" => "386".to_owned(),
            other => other.to_owned(),
        };
        if variant.starts_with(|c: char| c.is_ascii_digit()) {
            variant.insert(0, 'v');
        }
        // The only variant until now: images name it or not.
        if architecture == "arm64" && variant == "v8" {
            variant.clear();
        }
        Self {
            os: self.os.to_ascii_lowercase(),
            architecture,
            variant,
        }
    }

    /// Returns the platform as the engine's API takes it.
    pub(super) fn to_json(&self) -> String {
        let os = match self.os.as_str() {
            "" => "linux",
            os => os,
        };
        json!({"os": os, "architecture": self.architecture, "variant": self.variant}).to_string()
    }

    /// Returns true if an image of the platform `image` is one of this platform, or may be one.
    pub(super) fn accepts(&self, image: &Self) -> bool {
        let equal = |asked: &str, has: &str| asked.is_empty() || has.is_empty() || asked == has;
        equal(&self.os, &image.os)
            && equal(&self.architecture, &image.architecture)
            && equal(&self.variant, &image.variant)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [&self.os, &self.architecture, &self.variant];
        let known: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        for (at, part) in known.into_iter().enumerate() {
            let slash = if at > 0 { "/" } else { "" };
            write!(f, "{slash}{part}")?;
        }
        Ok(())
    }
}

fn is_os(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["linux", "windows", "freebsd", "darwin"].contains(&text.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_accepts_its_own_spellings_only() {
        for (asked, image, accepted) in [
            ("linux/amd64", "linux/amd64", true),
            ("linux/x86_64", "linux/amd64", true),
            ("Linux/aarch64", "linux/arm64/v8", true),
            ("linux/arm64/v8", "linux/arm64", true),
            ("linux/arm", "linux/arm/v6", true),
            ("linux/arm/7", "linux/arm/v7", true),
            ("linux/arm/v7", "linux/arm/v6", false),
            ("linux/arm64", "linux/amd64", false),
            ("windows/amd64", "linux/amd64", false),
            ("linux", "linux/amd64", true),
            ("windows", "linux/amd64", false),
            ("arm64", "linux/arm64", true),
            ("arm64", "linux/amd64", false),
            ("linux/arm64", "", true),
        ] {
            let (asked, image) = (Platform::parse(asked), Platform::parse(image));
            assert_eq!(asked.accepts(&image), accepted, "{asked} {image}");
        }
    }

    #[test]
    fn the_platform_of_an_image_is_read() {
        let json = br#"{"Os":"linux","Architecture":"arm","Variant":"v7","Id":"x"}"#;
        assert_eq!(Platform::of_image(json).to_string(), "linux/arm/v7");
        for unknown in [&b"{}"[..], b"", b"{\"Os\":7}"] {
            assert_eq!(Platform::of_image(unknown), Platform::default());
        }
    }
}
