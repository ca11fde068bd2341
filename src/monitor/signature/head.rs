//! The signature of the head of the ledger.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::error::{Error, Result};
use crate::monitor::context::{Context, SHUTDOWN_GRACE};
use crate::sign::{LEDGER_NAMESPACE, SigningKey};

/// The minimum time between two signatures of the head.
const INTERVAL: Duration = Duration::from_secs(1);

/// Signs the head of the ledger whenever it has changed, until the manager closes.
pub(crate) async fn sign_heads(context: Arc<Context>) {
    let Some(key) = context.sink.signing_key() else {
        return;
    };
    let closing = context.closing.clone();
    closing
        .run_until_cancelled(async {
            // The head that an earlier process did not sign.
            report(sign_head(&context, &key).await);
            loop {
                context.root.ledger_changed().await;
                report(sign_head(&context, &key).await);
                sleep(INTERVAL).await;
            }
        })
        .await;
}

/// Signs the last head, once all tasks of a closing manager have ended.
pub(crate) async fn sign_last_head(context: &Context) {
    if let Some(key) = context.sink.signing_key()
        && let Ok(signed) = timeout(SHUTDOWN_GRACE, sign_head(context, &key)).await
    {
        report(signed);
    }
}

/// Signs the head, unless it has a signature of this key.
async fn sign_head(context: &Context, key: &SigningKey) -> Result<()> {
    let public = key.public_key();
    let head = context
        .on_disk("read the ledger of", move |root| root.head_to_sign(&public))
        .await?;
    let Some(head) = head else {
        return Ok(());
    };
    let signature = key
        .sign(LEDGER_NAMESPACE, head.signed_text().as_bytes())
        .await?;
    context
        .on_disk("sign the ledger of", move |root| {
            root.write_head(&head, &signature)
        })
        .await
}

fn report(signed: Result<()>) {
    match signed {
        Ok(()) => {}
        Err(error @ Error::Damaged { .. }) => {
            tracing::error!(error = %error.chain(), "the head of the ledger is not signed");
        }
        Err(error) => {
            tracing::warn!(error = %error.chain(), "the head of the ledger is not signed");
        }
    }
}
