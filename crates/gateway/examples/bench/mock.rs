//! The provider of the benchmark: as little work per request as a provider can do, so that the relays are measured.
//! The model's name says what it answers: `plain`, `stream` (23 events, apart by a gap), `idle` (one word, then
//! nothing). Below `/claude` it is a stream of the same words in Anthropic's Messages.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Between the events of a stream: each is relayed by itself.
pub const GAP: Duration = Duration::from_millis(2);

pub async fn run(listener: TcpListener) {
    loop {
        let Ok((socket, _)) = listener.accept().await else { continue };
        let _ = socket.set_nodelay(true);
        tokio::task::spawn_local(async move {
            let _ = connection(socket).await;
        });
    }
}

async fn connection(mut socket: TcpStream) -> std::io::Result<()> {
    let plain = plain();
    let mut buffer = vec![0u8; 64 * 1024];
    let mut filled = 0;
    loop {
        // Head.
        let head = loop {
            if let Some(at) = memchr::memmem::find(&buffer[..filled], b"\r\n\r\n") {
                break at + 4;
            }
            let n = socket.read(&mut buffer[filled..]).await?;
            if n == 0 {
                return Ok(());
            }
            filled += n;
        };
        let length = content_length(&buffer[..head]).unwrap_or(0);
        // The beginning of the body names the model.
        while filled < head + length.min(256) {
            let n = socket.read(&mut buffer[filled..]).await?;
            if n == 0 {
                return Ok(());
            }
            filled += n;
        }
        let start = &buffer[head..filled.min(head + 256)];
        let mode = if buffer.starts_with(b"POST /claude/") {
            3
        } else if memchr::memmem::find(start, b"\"stream-").is_some() {
            1
        } else if memchr::memmem::find(start, b"\"idle-").is_some() {
            2
        } else {
            0
        };
        let mut left = (head + length).saturating_sub(filled);
        filled = filled.saturating_sub(head + length);
        while left > 0 {
            let n = socket.read(&mut buffer).await?;
            if n == 0 {
                return Ok(());
            }
            left = left.saturating_sub(n);
        }
        match mode {
            0 => socket.write_all(&plain).await?,
            1 | 3 => {
                socket.write_all(STREAM_HEAD).await?;
                for number in 0..23 {
                    if number > 1 {
                        tokio::time::sleep(GAP).await;
                    }
                    let event = if mode == 1 { event(number) } else { claude_event(number) };
                    socket.write_all(&event).await?;
                }
                socket.write_all(b"0\r\n\r\n").await?;
            }
            _ => {
                socket.write_all(STREAM_HEAD).await?;
                socket.write_all(&event(0)).await?;
                socket.write_all(&event(1)).await?;
                let n = socket.read(&mut buffer).await?;
                filled = n;
                if n == 0 {
                    return Ok(());
                }
            }
        }
    }
}

const STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";

/// Event 0 carries the role, 20 the reason of the end, 21 the usage, 22 the mark of the end.
fn event(number: usize) -> Vec<u8> {
    let common = r#"{"id":"chatcmpl-1234567890","object":"chat.completion.chunk","created":1790000000,"model":"m","system_fingerprint":"fp_0","choices":"#;
    let data = match number {
        0 => format!(
            r#"{common}[{{"index":0,"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]}}"#
        ),
        20 => format!(r#"{common}[{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}]}}"#),
        21 => format!(
            r#"{common}[],"usage":{{"prompt_tokens":250,"completion_tokens":19,"total_tokens":269,"prompt_tokens_details":{{"cached_tokens":0}}}}}}"#
        ),
        22 => "[DONE]".to_owned(),
        _ => format!(
            r#"{common}[{{"index":0,"delta":{{"content":" word{number}"}},"logprobs":null,"finish_reason":null}}]}}"#
        ),
    };
    let data = format!("data: {data}\n\n");
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

/// The same in Anthropic's form: the first two events begin, the last three end.
fn claude_event(number: usize) -> Vec<u8> {
    let (name, data) = match number {
        0 => (
            "message_start",
            r#"{"type":"message_start","message":{"id":"msg_1234567890","type":"message","role":"assistant","model":"m","content":[],"stop_reason":null,"stop_sequence":null,"usage":{"input_tokens":250,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,"output_tokens":1}}}"#
                .to_owned(),
        ),
        1 => (
            "content_block_start",
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#.to_owned(),
        ),
        20 => ("content_block_stop", r#"{"type":"content_block_stop","index":0}"#.to_owned()),
        21 => (
            "message_delta",
            r#"{"type":"message_delta","delta":{"stop_reason":"end_turn","stop_sequence":null},"usage":{"output_tokens":19}}"#
                .to_owned(),
        ),
        22 => ("message_stop", r#"{"type":"message_stop"}"#.to_owned()),
        _ => (
            "content_block_delta",
            format!(
                r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":" word{number}"}}}}"#
            ),
        ),
    };
    let data = format!("event: {name}\ndata: {data}\n\n");
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

fn plain() -> Vec<u8> {
    let content = "lorem ipsum dolor sit amet ".repeat(24);
    let body = format!(
        r#"{{"id":"chatcmpl-1234567890","object":"chat.completion","created":1790000000,"model":"m","choices":[{{"index":0,"message":{{"role":"assistant","content":"{content}","refusal":null,"annotations":[]}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":250,"completion_tokens":162,"total_tokens":412,"prompt_tokens_details":{{"cached_tokens":0,"audio_tokens":0}},"completion_tokens_details":{{"reasoning_tokens":0}}}},"service_tier":"default"}}"#
    );
    format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

pub fn content_length(head: &[u8]) -> Option<usize> {
    for line in head.split(|byte| *byte == b'\n') {
        if line.len() > 15 && line[..15].eq_ignore_ascii_case(b"content-length:") {
            return std::str::from_utf8(&line[15..]).ok()?.trim().parse().ok();
        }
    }
    None
}
