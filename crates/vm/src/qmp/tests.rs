//! The monitor's client against a monitor that says what the test wants.

use std::time::Duration;

use collective_model::{ErrorKind, Result};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::{Qmp, REPLY_BYTES};

const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

struct Monitor(BufReader<UnixStream>);

impl Monitor {
    /// Returns the next command.
    async fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn say(&mut self, line: &str) {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes()).await.unwrap();
    }

    /// Answers a command with its own name.
    async fn answer(&mut self, command: &Value) {
        let reply = json!({ "return": command["execute"], "id": command["id"] });
        self.say(&reply.to_string()).await;
    }
}

/// Connects to a monitor that greets so.
async fn greeted(greeting: &'static str) -> (Result<Qmp>, Monitor) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    let monitor = async {
        let mut monitor = Monitor(BufReader::new(listener.accept().await.unwrap().0));
        monitor.say(greeting).await;
        if greeting == GREETING {
            let command = monitor.hear().await;
            assert_eq!(command["execute"], "qmp_capabilities");
            monitor.answer(&command).await;
        }
        monitor
    };
    tokio::join!(Qmp::connect(&path), monitor)
}

async fn connected() -> (Qmp, Monitor) {
    let (qmp, monitor) = greeted(GREETING).await;
    (qmp.unwrap(), monitor)
}

fn asked(qmp: &Qmp, command: &'static str) -> JoinHandle<Result<Value>> {
    let qmp = qmp.clone();
    tokio::spawn(async move { qmp.execute(command, json!({})).await })
}

#[tokio::test]
async fn what_greets_otherwise_is_no_monitor() {
    for greeting in ["SSH-2.0-OpenSSH_9.2", "{}", r#"{"QMP": null}"#, "[]", "\u{0}"] {
        let error = greeted(greeting).await.0.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{greeting}: {error:?}");
    }
}

#[tokio::test]
async fn a_late_answer_reaches_nobody_and_spoils_nothing() {
    let (qmp, mut monitor) = connected().await;
    let moment = Duration::from_millis(5);
    let late = qmp.execute_within("late", json!({}), moment).await.unwrap_err();
    assert_eq!(late.kind(), ErrorKind::Unavailable);
    let next = asked(&qmp, "next");
    let late = monitor.hear().await;
    assert_eq!(late["execute"], "late");
    let command = monitor.hear().await;
    monitor.answer(&late).await;
    monitor.answer(&command).await;
    assert_eq!(next.await.unwrap().unwrap(), "next");
}

#[tokio::test]
async fn answers_in_any_order_reach_who_asked() {
    let (qmp, mut monitor) = connected().await;
    let asked = ["a", "b", "c", "d"].map(|command| (command, asked(&qmp, command)));
    let mut commands = Vec::new();
    for _ in &asked {
        commands.push(monitor.hear().await);
    }
    for command in commands.iter().rev() {
        monitor.answer(command).await;
    }
    for (command, answer) in asked {
        assert_eq!(answer.await.unwrap().unwrap(), command);
    }
}

#[tokio::test]
async fn what_nobody_asked_for_is_passed_over_and_events_are_told() {
    let (qmp, mut monitor) = connected().await;
    let mut events = qmp.events();
    let answer = asked(&qmp, "ask");
    let command = monitor.hear().await;
    for odd in [r#"{"return": "forged", "id": 999}"#, "{}", r#"{"return": 1}"#] {
        monitor.say(odd).await;
    }
    let event = r#"{"event": "STOP", "data": {"why": 1}, "timestamp": {"seconds": 2, "microseconds": 3000}}"#;
    monitor.say(event).await;
    monitor.answer(&command).await;
    assert_eq!(answer.await.unwrap().unwrap(), "ask");
    let event = events.next().await.unwrap();
    assert_eq!((event.name.as_str(), &event.data["why"]), ("STOP", &json!(1)));
    assert_eq!(event.time.0, 2003);
}

#[tokio::test]
async fn a_refusal_has_the_monitors_own_words() {
    let (qmp, mut monitor) = connected().await;
    let answer = asked(&qmp, "ask");
    let id = &monitor.hear().await["id"];
    let refusal = json!({ "error": { "class": "GenericError", "desc": "no such node" }, "id": id });
    monitor.say(&refusal.to_string()).await;
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.chain().contains("no such node"), "{}", error.chain());
}

/// Whoever waits, asks later or listens is told that the connection has ended.
async fn check_ended(qmp: &Qmp, waiting: JoinHandle<Result<Value>>) {
    let mut events = qmp.events();
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Unavailable);
    qmp.closed().await;
    assert!(qmp.is_closed());
    assert_eq!(qmp.status().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(events.next().await, None);
    assert_eq!(qmp.events().next().await, None);
}

#[tokio::test]
async fn a_lost_connection_is_told_at_once() {
    let (qmp, mut monitor) = connected().await;
    let waiting = asked(&qmp, "ask");
    monitor.hear().await;
    drop(monitor);
    check_ended(&qmp, waiting).await;
}

#[tokio::test]
async fn garbage_ends_the_connection() {
    for garbage in ["nonsense", r#"{"return":"#, r#"{"id": "one"}"#, r#"{"event": 7}"#] {
        let (qmp, mut monitor) = connected().await;
        let waiting = asked(&qmp, "ask");
        monitor.hear().await;
        monitor.say(garbage).await;
        check_ended(&qmp, waiting).await;
    }
}

#[tokio::test]
async fn an_endless_line_ends_the_connection_at_its_limit() {
    let (qmp, mut monitor) = connected().await;
    let waiting = asked(&qmp, "ask");
    monitor.hear().await;
    let part = [b' '; 1 << 16];
    let mut sent_bytes = 0;
    while monitor.0.get_mut().write_all(&part).await.is_ok() {
        sent_bytes += part.len();
        assert!(sent_bytes < 2 * REPLY_BYTES, "it is read for ever");
    }
    assert!(sent_bytes >= REPLY_BYTES);
    check_ended(&qmp, waiting).await;
}
