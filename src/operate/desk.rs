//! Where requests come in and wait for their answers, while the run goes on.

use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::protocol::{Answer, Put, Refusal};
use super::put;
use super::socket::{Asked, Media};
use crate::app::{Config, Summary};
use crate::chain;
use crate::codes::Code;
use crate::course::Beside;
use crate::kvs::control::Order;
use crate::kvs::session::Reset;
use crate::report::amount;

/// Whoever waits for an answer.
pub type Asker = oneshot::Sender<Answer>;

/// Media that somebody wants to put into the stream.
#[derive(Debug)]
pub struct Upload {
    /// How.
    pub how: Put,
    /// What.
    pub media: Media,
    /// Who.
    pub answer: Asker,
}

/// What comes to the desk.
#[derive(Debug)]
pub enum Next {
    /// A request.
    Asked(Asked),
    /// What was put is over, and its client has its answer.
    Uploaded,
}

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
    /// Waits until no connection is left.
    upload: Option<Upload>,
    /// What is being put.
    uploads: JoinSet<()>,
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
            upload: None,
            uploads: JoinSet::new(),
        }
    }

    /// Keeps what is to be put until no connection is left.
    pub fn put_when_idle(&mut self, upload: Upload) {
        self.upload = Some(upload);
    }

    /// What is to be put now.
    pub fn take_upload(&mut self) -> Option<Upload> {
        self.upload.take()
    }

    /// Puts media into the stream, as `config` says, and answers what came of it. `beside` keeps the run
    /// for as long.
    pub fn uploads(&mut self, upload: Upload, config: Config, beside: Beside) {
        self.uploads.spawn(async move {
            let Upload { media, answer, .. } = upload;
            match put::from_client(media, config, &beside).await {
                Ok(summary) => reply(answer, ended(&summary)),
                Err(error) => {
                    let refusal = Refusal::new(error.code(), chain(&error).to_string());
                    // Whoever asked may be gone.
                    let _ = answer.send(Err(refusal));
                }
            }
        });
    }

    /// Gives an order. Control is gone only when the run is over.
    pub fn order(&self, order: Order) {
        let _ = self.orders.send(order);
    }

    /// What comes next. Nothing is lost when it is not waited for to the end.
    pub async fn next(&mut self) -> Option<Next> {
        // Those that are done.
        while self.resets.try_join_next().is_some() {}
        tokio::select! {
            asked = self.asked.recv() => asked.map(Next::Asked),
            Some(_) = self.uploads.join_next() => Some(Next::Uploaded),
        }
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
            reply(asker, ended(summary));
        }
    }
}

fn ended(summary: &Summary) -> Value {
    json!({
        "exit": summary.exit as u8,
        "report": summary.report.json(),
    })
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
