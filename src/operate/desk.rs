//! Where requests come in and wait for their answers, while the run goes on.

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::protocol::{Answer, Refusal};
use super::socket::Asked;
use crate::app::Summary;
use crate::codes::Code;
use crate::kvs::control::Order;
use crate::kvs::session::Reset;
use crate::report::amount;

/// Whoever waits for an answer.
type Asker = oneshot::Sender<Answer>;

/// See the module.
#[derive(Debug)]
pub struct Desk {
    orders: mpsc::UnboundedSender<Order>,
    asked: mpsc::Receiver<Asked>,
    /// They wait until no connection is left.
    idle: Vec<Asker>,
    /// They wait for the end.
    end: Vec<Asker>,
    /// Each waits for what a reset comes to.
    resets: JoinSet<()>,
}

impl Desk {
    /// A desk that gives `orders` and takes what is `asked`.
    pub fn new(orders: mpsc::UnboundedSender<Order>, asked: mpsc::Receiver<Asked>) -> Self {
        Self {
            orders,
            asked,
            idle: Vec::new(),
            end: Vec::new(),
            resets: JoinSet::new(),
        }
    }

    /// Gives an order. Control is gone only when the run is over.
    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    /// The next request.
    pub async fn next(&mut self) -> Option<Asked> {
        // Those that are done.
        while self.resets.try_join_next().is_some() {}
        self.asked.recv().await
    }

    /// Answers when no connection is left.
    pub fn when_idle(&mut self, asker: Asker) {
        self.idle.push(asker);
    }

    /// Answers when the run is over.
    pub fn at_end(&mut self, asker: Asker) {
        self.end.push(asker);
    }

    /// No connection is left.
    pub fn idle(&mut self) {
        for asker in self.idle.drain(..) {
            reply(asker, paused());
        }
    }

    /// Has it begun anew, and answers what that came to.
    pub fn reset(&mut self, what: Reset, asker: Asker) {
        let (done, anew) = oneshot::channel();
        self.order(Order::Reset(what, done));
        self.resets.spawn(async move {
            if let Ok(anew) = anew.await {
                let fields = json!({
                    "discarded": amount(anew.discarded),
                    "again": { "fragments": anew.again },
                });
                reply(asker, fields);
            }
        });
    }

    /// The run is over.
    pub fn close(self, summary: &Summary) {
        for asker in self.end {
            let fields = json!({
                "exit": summary.exit as u8,
                "report": summary.report.json(),
            });
            reply(asker, fields);
        }
    }
}

/// What a producer says that has paused.
pub fn paused() -> Value {
    json!({ "paused": true })
}

/// Answers with the fields of an object.
pub fn reply(asker: Asker, fields: Value) {
    let fields = match fields {
        Value::Object(fields) => fields,
        other => [("answer".to_owned(), other)].into_iter().collect(),
    };
    // Whoever asked may be gone.
    let _ = asker.send(Ok(fields));
}

/// Says why not now.
pub fn refuse(asker: Asker, why: &str) {
    let _ = asker.send(Err(Refusal::new(Code::NOT_NOW, why)));
}
