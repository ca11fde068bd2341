//! Tests next to OpenSSH: both accept the same signatures.

use std::fs;

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::tz::TimeZone;
use testkit::keygen::{Check, Keys};

use crate::error::{Error, SignError, SignatureError};
use crate::sign::{AllowedSigners, NAMESPACE, Signer, SigningKey, signature_path};
use crate::timestamp::Timestamp;

const MESSAGE: &[u8] = b"a sealed file\n";
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "\n-----END SSH SIGNATURE-----\n";

fn signing_key(keys: &Keys) -> SigningKey {
    SigningKey::from_file(keys.path("key")).unwrap()
}

#[tokio::test]
async fn both_accept_the_same_lines() {
    let keys = Keys::new();
    keys.generate("other", &["-t", "ed25519", "-N", ""]);
    keys.generate("rsa", &["-t", "rsa", "-b", "2048", "-N", ""]);
    let signature = signing_key(&keys).sign(NAMESPACE, MESSAGE).await.unwrap();
    let signature_path = keys.write("message.sig", &signature);
    let message = keys.write("message", MESSAGE);
    let (key, other, rsa) = (keys.public("key"), keys.public("other"), keys.public("rsa"));
    let new_york = "America/New_York";
    let noon = "20300701120000Z";
    // The lines, the identity, the time, its zone, and whether both accept the signature.
    let table: Vec<(String, &str, &str, &str, bool)> = vec![
        (format!("me {key}"), "me", noon, "UTC", true),
        (format!("me {key}"), "you", noon, "UTC", false),
        (format!("me {other}"), "me", noon, "UTC", false),
        (format!("me {other}\nme {key}"), "me", noon, "UTC", true),
        (
            format!("me {rsa}\n\n# c\n  \t#c\nme {key} comment here"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (format!("  me\t \t{key}\t comment"), "me", noon, "UTC", true),
        (format!("me {key}\r\n"), "me", noon, "UTC", true),
        (format!("a,me,b {key}"), "me", noon, "UTC", true),
        (
            format!("*@example.com {key}"),
            "me@example.com",
            noon,
            "UTC",
            true,
        ),
        (
            format!("*@example.com {key}"),
            "me@example.org",
            noon,
            "UTC",
            false,
        ),
        (format!("m?,!mx {key}"), "me", noon, "UTC", true),
        (format!("m?,!mx {key}"), "mx", noon, "UTC", false),
        (format!("!mx,m? {key}"), "mx", noon, "UTC", false),
        (format!("!me {key}"), "you", noon, "UTC", false),
        (format!("*a*b*c {key}"), "xaybzbc", noon, "UTC", true),
        (format!("*a*b*c {key}"), "xaybzbd", noon, "UTC", false),
        (format!("Me {key}"), "me", noon, "UTC", false),
        (format!("\"me\" {key}"), "me", noon, "UTC", true),
        (format!("\"m e\" {key}"), "m e", noon, "UTC", true),
        (format!("\"me {key}"), "me", noon, "UTC", false),
        ("me".into(), "me", noon, "UTC", false),
        (format!("me\nme {key}"), "me", noon, "UTC", true),
        (
            format!("me nonsense {key}\nme {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (format!("me nonsense {key}"), "me", noon, "UTC", false),
        (format!("me cert-authority {key}"), "me", noon, "UTC", false),
        (
            format!("me cert-authority {key}\nme {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me namespaces=\"moat-audit\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me NAMESPACES=\"moat-audit\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me namespaces=\"git\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me namespaces=\"git\" {key}\nme {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me namespaces=\"git,moat-*\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me namespaces=\"*,!moat-audit\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me namespaces=\"\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me namespaces=moat-audit {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me namespaces=\"a\",namespaces=\"moat-audit\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me namespaces=\"a b,moat-audit\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me namespaces=\"a\\\"b,moat-audit\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me namespaces=\"moat-audit {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me namespaces=\"moat-audit\", {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me namespaces=\"moat-audit\"valid-after=\"20300101\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-after=\"20300701Z\" {key}"),
            "me",
            "20300701000000Z",
            "UTC",
            true,
        ),
        (
            format!("me valid-after=\"20300701Z\" {key}"),
            "me",
            "20300630235959Z",
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"20300701Z\" {key}"),
            "me",
            "20300701000000Z",
            "UTC",
            true,
        ),
        (
            format!("me valid-before=\"20300701Z\" {key}"),
            "me",
            "20300701000001Z",
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"203007011230Z\" {key}"),
            "me",
            "20300701123000Z",
            "UTC",
            true,
        ),
        (
            format!("me valid-before=\"203007011230Z\" {key}"),
            "me",
            "20300701123001Z",
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"20300701123015utc\" {key}"),
            "me",
            "20300701123015Z",
            "UTC",
            true,
        ),
        (
            format!("me valid-before=\"20300701123015z\" {key}"),
            "me",
            "20300701123016Z",
            "UTC",
            false,
        ),
        (
            format!("me valid-after=\"20300101Z\",valid-before=\"20310101Z\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me valid-after=\"20310101Z\",valid-before=\"20300101Z\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-after=\"20300101Z\",valid-after=\"20300102Z\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"20310101Z\",namespaces=\"moat-audit\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me valid-before=\"2031\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"20311301Z\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"20310132Z\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"203101012400Z\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"19700101Z\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"19690101Z\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"2031010a\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        // The day after February 28 of a common year, twice.
        (
            format!("me valid-before=\"20310229Z\" {key}"),
            "me",
            "20310301000000Z",
            "UTC",
            true,
        ),
        (
            format!("me valid-before=\"20310229Z\" {key}"),
            "me",
            "20310301000001Z",
            "UTC",
            false,
        ),
        (
            format!("me valid-before=\"20300701235960Z\" {key}"),
            "me",
            "20300702000000Z",
            "UTC",
            true,
        ),
        (
            format!("me valid-before=\"20300701235960Z\" {key}"),
            "me",
            "20300702000001Z",
            "UTC",
            false,
        ),
        // Past the last timestamp of moat.
        (
            format!("me valid-before=\"99991231235959Z\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me valid-before=\"99991231235960Z\" {key}"),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me valid-before=\"99991231\" {key}"),
            "me",
            noon,
            new_york,
            true,
        ),
        (
            format!("me valid-after=\"99991231Z\" {key}"),
            "me",
            noon,
            "UTC",
            false,
        ),
        // Other white space in the base64, and a comment that is read as base64.
        (format!("me {key}\u{b}"), "me", noon, "UTC", true),
        (format!("me {key}\u{c}\n"), "me", noon, "UTC", true),
        (format!("me {key}\u{b} comment"), "me", noon, "UTC", true),
        (format!("me {key}\u{b}comment"), "me", noon, "UTC", false),
        (
            format!("me {}", key.replace(" AAAA", " AA\u{c}AA")),
            "me",
            noon,
            "UTC",
            true,
        ),
        (
            format!("me {}", key.replace(" AAAA", "\u{c}AAAA")),
            "me",
            noon,
            "UTC",
            false,
        ),
        // Local times: winter, summer, the missing hour, and the hour that is there twice.
        (
            format!("me valid-before=\"20300101\" {key}"),
            "me",
            "20300101050000Z",
            new_york,
            true,
        ),
        (
            format!("me valid-before=\"20300101\" {key}"),
            "me",
            "20300101050001Z",
            new_york,
            false,
        ),
        (
            format!("me valid-before=\"20300701\" {key}"),
            "me",
            "20300701050000Z",
            new_york,
            true,
        ),
        (
            format!("me valid-before=\"20300701\" {key}"),
            "me",
            "20300701050001Z",
            new_york,
            false,
        ),
        (
            format!("me valid-before=\"203003100230\" {key}"),
            "me",
            "20300310073000Z",
            new_york,
            true,
        ),
        (
            format!("me valid-before=\"203003100230\" {key}"),
            "me",
            "20300310073001Z",
            new_york,
            false,
        ),
        (
            format!("me valid-before=\"203011030130\" {key}"),
            "me",
            "20301103063000Z",
            new_york,
            true,
        ),
        (
            format!("me valid-before=\"203011030130\" {key}"),
            "me",
            "20301103063001Z",
            new_york,
            false,
        ),
        (
            format!("me valid-before=\"20300701\" {key}"),
            "me",
            "20300630150000Z",
            "Asia/Tokyo",
            true,
        ),
        (
            format!("me valid-before=\"20300701\" {key}"),
            "me",
            "20300630150001Z",
            "Asia/Tokyo",
            false,
        ),
    ];
    for (lines, identity, at, zone, accepted) in table {
        let allowed = keys.write("allowed", &lines);
        let check = Check {
            identity,
            at: Some(at),
            zone,
            ..Check::new(&allowed)
        };
        let case = format!("{lines:?} for {identity} at {at} in {zone}");
        assert_eq!(
            check.accepts(&message, &signature_path),
            accepted,
            "ssh-keygen: {case}"
        );
        let zone = TimeZone::get(zone).unwrap();
        let ours = AllowedSigners::parse_in(&lines, &zone)
            .identity(identity)
            .at(time(at))
            .verify(NAMESPACE, MESSAGE, signature.as_bytes());
        assert_eq!(ours.is_ok(), accepted, "moat: {case}: {ours:?}");
    }
}

/// A time in the notation of `ssh-keygen`, in UTC.
fn time(text: &str) -> Timestamp {
    let part = |from, to| &text[from..to];
    let (date, clock) = (
        format!("{}-{}-{}", part(0, 4), part(4, 6), part(6, 8)),
        format!("{}:{}:{}", part(8, 10), part(10, 12), part(12, 14)),
    );
    format!("{date}T{clock}Z").parse().unwrap()
}

#[tokio::test]
async fn both_refuse_each_changed_byte_of_a_signature() {
    let keys = Keys::new();
    let signature = signing_key(&keys).sign(NAMESPACE, MESSAGE).await.unwrap();
    let allowed_text = format!("me {}", keys.public("key"));
    let allowed = AllowedSigners::parse(&allowed_text).identity("me");
    let allowed_path = keys.write("allowed", &allowed_text);
    let message = keys.write("message", MESSAGE);
    let check = Check::new(&allowed_path);
    let mut harmless = Vec::new();
    for offset in 0..signature.len() {
        for flip in [1, 4, 0x20] {
            let mut changed = signature.clone().into_bytes();
            changed[offset] ^= flip;
            let ours = allowed.verify(NAMESPACE, MESSAGE, &changed).is_ok();
            let path = keys.write("changed.sig", &changed);
            let context = format!("byte {offset} ^ {flip:#x}");
            assert_eq!(ours, check.accepts(&message, &path), "{context}");
            if ours {
                harmless.push((signature.as_bytes()[offset], changed[offset]));
            }
        }
    }
    // Line breaks of the armor that became other white space, and the last newline.
    let last_newline = 3;
    assert_eq!(
        harmless.iter().filter(|(from, _)| *from != b'\n').count(),
        0
    );
    let other_space = harmless.iter().filter(|(_, to)| *to == 0x0b).count();
    assert!(other_space > 0 && harmless.len() <= other_space + last_newline);
}

#[tokio::test]
async fn every_reason_is_distinct() {
    let keys = Keys::new();
    let key = keys.public("key");
    let signature = signing_key(&keys).sign(NAMESPACE, MESSAGE).await.unwrap();
    let noon: Timestamp = "2030-07-01T12:00:00Z".parse().unwrap();
    let reason = |lines: &str, identity: Option<&str>, message: &[u8], signature: &str| {
        let mut allowed = AllowedSigners::parse(lines).at(noon);
        if let Some(identity) = identity {
            allowed = allowed.identity(identity);
        }
        let error = allowed.verify(NAMESPACE, message, signature.as_bytes());
        error.unwrap_err().to_string()
    };
    let line = |options: &str| format!("me {options}{key}");
    let fingerprint = signing_key(&keys).fingerprint();
    assert_eq!(
        reason("", None, MESSAGE, &signature),
        format!("the key {fingerprint} is not an allowed signer")
    );
    assert_eq!(
        reason(&line(""), Some("you"), MESSAGE, &signature),
        format!("the key {fingerprint} is not an allowed signer for the identity \"you\"")
    );
    assert_eq!(
        reason(&line("cert-authority "), None, MESSAGE, &signature),
        format!(
            "the key {fingerprint} is not an allowed signer: line 1 is for certificates, which moat \
             does not verify"
        )
    );
    assert_eq!(
        reason(&line("nonsense "), None, MESSAGE, &signature),
        format!(
            "the key {fingerprint} is not an allowed signer: line 1 cannot be used: it has an \
             unknown option"
        )
    );
    assert_eq!(
        reason(
            &line("valid-after=\"20300702Z\" "),
            None,
            MESSAGE,
            &signature
        ),
        "line 1 of the allowed signers: the key is not valid before 2030-07-02T00:00:00.000000000Z"
    );
    assert_eq!(
        reason(
            &line("valid-before=\"20300630Z\" "),
            None,
            MESSAGE,
            &signature
        ),
        "line 1 of the allowed signers: the key has expired: it was valid until \
         2030-06-30T00:00:00.000000000Z"
    );
    assert_eq!(
        reason(&line("namespaces=\"git\" "), None, MESSAGE, &signature),
        "line 1 of the allowed signers does not allow the key in the namespace \"moat-audit\""
    );
    assert_eq!(
        reason(&line(""), None, b"another", &signature),
        "the signature does not match the file"
    );
    let other = signing_key(&keys).sign("git", MESSAGE).await.unwrap();
    assert_eq!(
        reason(&line(""), None, MESSAGE, &other),
        "the signature is for the namespace \"git\", not for \"moat-audit\""
    );
    assert_eq!(
        reason(&line(""), None, MESSAGE, "nonsense"),
        "the signature is malformed: it does not begin with the header of an SSH signature"
    );
    let path = keys.write("message", MESSAGE);
    let missing = AllowedSigners::parse(&line("")).verify_file(NAMESPACE, &path);
    assert!(matches!(
        missing,
        Err(Error::Signature {
            source: SignatureError::Missing,
            ..
        })
    ));
    fs::write(signature_path(&path), &signature).unwrap();
    let verified = AllowedSigners::parse(&line("")).verify_file(NAMESPACE, &path);
    assert_eq!(verified.unwrap().fingerprint, fingerprint);
}

#[test]
fn unusable_keys_say_what_to_do() {
    let keys = Keys::new();
    let error = |name: &str| SigningKey::from_file(keys.path(name)).unwrap_err().chain();
    keys.generate("locked", &["-t", "ed25519", "-N", "secret"]);
    assert!(error("locked").contains("is encrypted; use SigningKey::from_file_with_passphrase"));
    keys.generate("ecdsa", &["-t", "ecdsa", "-N", ""]);
    assert!(
        error("ecdsa").contains("moat signs with Ed25519 only"),
        "{}",
        error("ecdsa")
    );
    keys.generate("rsa", &["-t", "rsa", "-b", "2048", "-N", ""]);
    assert!(
        error("rsa").contains("moat signs with Ed25519 only"),
        "{}",
        error("rsa")
    );
    assert!(error("key.pub").contains("no private key in the format of OpenSSH"));
    assert!(error("missing").starts_with("cannot read the key "));

    let unlock =
        |passphrase| SigningKey::from_file_with_passphrase(keys.path("locked"), passphrase);
    let wrong = unlock("wrong").unwrap_err().chain();
    assert!(wrong.ends_with("the passphrase is wrong"), "{wrong}");
    let unlocked = unlock("secret").unwrap();
    assert_eq!(unlocked.public_key(), keys.public("locked"));
    assert_eq!(
        format!("{unlocked:?}"),
        format!("SigningKey({:?})", unlocked.fingerprint())
    );
}

/// Even where it is passed by mistake.
#[test]
fn no_error_contains_a_private_key() {
    let keys = Keys::new();
    let private = fs::read_to_string(keys.path("key")).unwrap();
    let secrets: Vec<_> = private
        .lines()
        .filter(|line| !line.starts_with("---"))
        .collect();
    let signer = BadSigner {
        public_key: private.clone(),
        fault: Fault::Fails,
    };
    let public = "cannot use the public key: this is a private key; pass the .pub file";
    let path = "cannot read a key: this is a private key; pass the path of its file";
    #[cfg(unix)]
    let agent = SigningKey::from_agent_at("/no/agent", &private);
    let cases = [
        #[cfg(unix)]
        (agent, public),
        (SigningKey::from_signer(signer), public),
        (SigningKey::from_file(&private), path),
        (SigningKey::from_file_with_passphrase(&private, "a"), path),
    ];
    for (key, expected) in cases {
        let error = key.unwrap_err();
        assert_eq!(error.chain(), expected);
        let debug = format!("{error:?}");
        assert!(!secrets.iter().any(|line| debug.contains(line)), "{debug}");
    }
    let allowed = AllowedSigners::parse(&private);
    let debug = format!("{allowed:?}");
    assert!(!secrets.iter().any(|line| debug.contains(line)), "{debug}");
    // Nor a part of one that is not recognized.
    let signer = BadSigner {
        public_key: secrets[0].into(),
        fault: Fault::Fails,
    };
    let error = SigningKey::from_signer(signer).unwrap_err();
    assert!(!format!("{error:?}").contains(secrets[0]));
}

/// A signer that misbehaves.
#[derive(Debug)]
struct BadSigner {
    public_key: String,
    fault: Fault,
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Fails,
    Hangs,
    Blocks,
    Panics,
    WrongKey,
    Short,
}

#[async_trait]
impl Signer for BadSigner {
    fn public_key(&self) -> String {
        self.public_key.clone()
    }

    async fn sign(&self, _: &[u8]) -> Result<Vec<u8>, SignError> {
        match self.fault {
            Fault::Fails => Err(SignError::new("the module is locked")),
            Fault::Hangs => std::future::pending().await,
            Fault::Blocks => loop {
                std::thread::park();
            },
            Fault::Panics => panic!("as the test asks"),
            Fault::WrongKey => Ok(vec![1; 64]),
            Fault::Short => Ok(vec![1; 3]),
        }
    }
}

#[tokio::test]
async fn a_bad_signer_gives_an_error_in_time() {
    let keys = Keys::new();
    let mismatch = "cannot sign: the signature of the signer does not match its public key";
    let late = "cannot sign: the signer did not answer within 10s";
    let errors = [
        (Fault::Fails, "cannot sign: the module is locked"),
        (Fault::Hangs, late),
        (Fault::Blocks, late),
        (Fault::Panics, "cannot sign: the signer panicked"),
        (Fault::WrongKey, mismatch),
        (Fault::Short, mismatch),
    ]
    .map(async |(fault, expected)| {
        let public_key = keys.public("key");
        let key = SigningKey::from_signer(BadSigner { public_key, fault }).unwrap();
        let error = key.sign(NAMESPACE, MESSAGE).await.unwrap_err();
        assert_eq!(error.chain(), expected);
    });
    futures::future::join_all(errors).await;
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(
        text in "[a-zé \t\"\\\\=,!*?#\r\n0-9Z-]{0,80}",
        options in "(namespaces=|valid-after=|valid-before=|cert-authority|[\"\\\\,é0-9Z]){0,8}",
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
    ) {
        let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA==";
        let lines = format!("{text}\nme {options} {key}\n{text} {key}");
        let allowed = AllowedSigners::parse_in(&lines, &TimeZone::UTC);
        let armor = [BEGIN.as_bytes(), &bytes, END.as_bytes()].concat();
        let blob = [&b"SSHSIG\0\0\0\x01"[..], &bytes].concat();
        let wrapped = format!("{BEGIN}{}{END}", STANDARD.encode(blob));
        for signature in [&bytes, &armor, wrapped.as_bytes()] {
            proptest::prop_assert!(allowed.verify(NAMESPACE, MESSAGE, signature).is_err());
        }
    }
}
