//! Processes that are killed between the seal and the signature.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use moat::async_trait;
use moat::sign::{AllowedSigners, NAMESPACE, SignError, Signer, SigningKey};
use moat::sink::Jsonl;
use moat::{LocalProcess, Manager, RunId};
use testkit::deadline::eventually;
use testkit::keygen::Keys;

use crate::embedder::Embedder;
use crate::place::{Place, line, sh};

const ROLE: &str = "MOAT_TEST_SIGNER";

/// A signer that writes a line when it is called, and never answers.
#[derive(Debug)]
struct Hung {
    public_key: String,
    called: PathBuf,
}

#[async_trait]
impl Signer for Hung {
    fn public_key(&self) -> String {
        self.public_key.clone()
    }

    async fn sign(&self, data: &[u8]) -> Result<Vec<u8>, SignError> {
        // The head of the ledger is signed from the begin of the run on.
        if data
            .windows(NAMESPACE.len())
            .any(|part| part == NAMESPACE.as_bytes())
        {
            fs::write(&self.called, "yes\n").unwrap();
        }
        std::future::pending().await
    }
}

async fn open(place: &Place, key: SigningKey) -> Manager {
    let builder = Manager::builder(place.root(), LocalProcess::new());
    let sink = Jsonl::new().signed_by(key);
    builder.sink(sink).open().await.unwrap()
}

/// The body of the child. In the parent it does nothing.
#[tokio::test]
async fn child_signer() {
    let Some(dir) = std::env::var_os(ROLE) else {
        return;
    };
    let place = PathBuf::from(dir);
    let signer = Hung {
        public_key: fs::read_to_string(place.join("public")).unwrap(),
        called: place.join("called"),
    };
    let key = SigningKey::from_signer(signer).unwrap();
    let builder = Manager::builder(place.join("root"), LocalProcess::new());
    let manager = builder.sink(Jsonl::new().signed_by(key)).open().await;
    let id = RunId::new("first").unwrap();
    let run = manager.unwrap().start(sh("echo out").id(id)).await.unwrap();
    run.wait().await.unwrap();
    std::future::pending().await
}

#[tokio::test]
async fn a_kill_before_the_signature_does_not_lose_it() {
    let (place, keys) = (Place::new(), Keys::new());
    fs::write(place.file("public"), keys.public("key")).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "sign::child_signer"])
        .env(ROLE, place.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let embedder = Embedder(command.spawn().unwrap());
    // The signer is called after the seal.
    line(&place.file("called")).await;
    drop(embedder);

    let id = RunId::new("first").unwrap();
    let key = SigningKey::from_file(keys.path("key")).unwrap();
    let allowed = AllowedSigners::parse(&format!("me {}", key.public_key()));
    let manager = open(&place, key).await;
    let root = manager.root();
    let before = root.info(&id).unwrap();
    assert!(before.seal.is_some());
    let signer = eventually(60, "the signature", async || {
        let is_marked = root.info(&id).unwrap().unsigned.is_some();
        root.verify_signature(&id, &allowed)
            .ok()
            .filter(|_| !is_marked)
    });
    assert_eq!(signer.await.principals, "me");
}
