//! The thread that writes what ranks have posted, and tells of failures that were reported while the rank is elsewhere.

use std::sync::Arc;
use std::thread::JoinHandle;

use super::shared::Shared;

/// Sleeps most of the time.
pub struct Postman;

impl Postman {
    pub fn start(shared: Arc<Shared>) -> std::io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("postman".into()).spawn(move || {
            loop {
                let outputs = {
                    let mut state = shared.lock();
                    if state.over {
                        return;
                    }
                    state.flush(&shared);
                    state.outputs()
                };
                shared.sleep(&outputs, &shared.post, None);
            }
        })
    }
}
