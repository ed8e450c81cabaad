//! The agent's client against an agent that says what the test wants.

use std::time::Duration;

use collective_model::ErrorKind;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

use super::{Agent, Exec};

/// Answers each question with what `reply` makes of its command; every fresh connection first gets `stale`.
fn agent(stale: &'static [u8], reply: fn(&str) -> Value) -> (tempfile::TempDir, Agent) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            stream.get_mut().write_all(stale).await.unwrap();
            let mut line = Vec::new();
            while stream.read_until(b'\n', &mut line).await.is_ok_and(|count| count > 0) {
                let text = line.strip_prefix(b"\xff").unwrap_or(&line);
                let question: Value = serde_json::from_slice(text).unwrap();
                let command = question["execute"].as_str().unwrap();
                let mut answer = if command == "guest-sync-delimited" {
                    [
                        b"\xff",
                        json!({ "return": question["arguments"]["id"] }).to_string().as_bytes(),
                    ]
                    .concat()
                } else {
                    reply(command).to_string().into_bytes()
                };
                answer.push(b'\n');
                if stream.get_mut().write_all(&answer).await.is_err() {
                    break;
                }
                line.clear();
            }
        }
    });
    (directory, Agent::new(path))
}

#[tokio::test]
async fn what_was_said_before_the_question_is_thrown_away() {
    let stale = b"\"half an answer\"}\n{\"return\": 4}\n\xff{\"return\": 1}\n{\"error\"";
    let (_directory, agent) = agent(stale, |_| json!({ "return": {} }));
    agent.ping().await.unwrap();
    agent.ping().await.unwrap();
}

#[tokio::test]
async fn a_program_gives_its_output_and_its_code() {
    let (_directory, agent) = agent(b"", |command| match command {
        "guest-exec" => json!({ "return": { "pid": 7 } }),
        _ => json!({ "return": {
            "exited": true, "exitcode": 3, "out-data": "aGk=", "err-truncated": true } }),
    });
    let result = agent.exec(&Exec::default(), Duration::from_secs(5)).await.unwrap();
    assert_eq!((result.exit_code, result.output.as_slice()), (3, b"hi".as_slice()));
    assert!(result.truncated);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_told_from_what_the_agent_refuses() {
    type Reply = fn(&str) -> Value;
    let refusals: [(Reply, ErrorKind); 3] = [
        (|_| json!({ "error": { "desc": "no (No such file or directory)" } }), ErrorKind::NotFound),
        (|_| json!({ "error": { "desc": "no (Permission denied)" } }), ErrorKind::Denied),
        (|_| json!({ "error": { "desc": "it has been disabled" } }), ErrorKind::Invalid),
    ];
    for (reply, kind) in refusals {
        let (_directory, agent) = agent(b"", reply);
        let exec = Exec { path: "nosuch".to_owned(), ..Exec::default() };
        let error = agent.exec(&exec, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
    }
}

#[tokio::test]
async fn a_hostile_answer_is_an_error_and_never_taken() {
    let hostile: [fn(&str) -> Value; 4] = [
        |_| json!({ "return": { "pid": "seven" } }),
        |_| json!({}),
        |_| json!([[[[1]]]]),
        |command| match command {
            "guest-exec" => json!({ "return": { "pid": 7 } }),
            _ => json!({ "return": { "exited": true, "out-data": "?" } }),
        },
    ];
    for reply in hostile {
        let (_directory, agent) = agent(b"", reply);
        let error = agent.exec(&Exec::default(), Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
}

#[tokio::test]
async fn a_file_that_never_ends_is_refused_at_its_limit() {
    let (_directory, agent) = agent(b"", |command| match command {
        "guest-file-open" => json!({ "return": 1 }),
        "guest-file-read" => json!({ "return": { "count": 3, "buf-b64": "YWJj", "eof": false } }),
        _ => json!({ "return": {} }),
    });
    let error = agent.read_file("/etc/x", 1000).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
