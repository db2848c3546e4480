//! Puts what an upstream interleaves into blocks that follow each other: text between the arguments of a call, two
//! calls at once, arguments before the name.
//!
//! Not its job: any wire. Invariants: at most one block is open; what waits behind it is bounded; a block that was
//! closed gets nothing more.

use std::collections::{BTreeSet, VecDeque};

use super::{
    failure::UpstreamFailure,
    inner::{BlockKind, FinishReason, InnerEvent},
    signature::Signature,
};

/// Most bytes that may wait behind the open block. The longest answers that models give are far below.
const WAITING: usize = 8 << 20;

/// Most blocks that may wait: each piece of a call looks for its own among them.
const LANES: usize = 256;

/// Most calls in one answer; models make a few dozen.
const CALLS: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Refusal,
    Thinking,
    Tool(u64),
}

/// How far a JSON value has come, seen from outside.
#[derive(Debug, Default)]
struct JsonEnd {
    depth: u32,
    quoted: bool,
    escaped: bool,
    done: bool,
}

impl JsonEnd {
    fn feed(&mut self, text: &str) {
        for byte in text.bytes() {
            if self.escaped {
                self.escaped = false;
            } else if self.quoted {
                match byte {
                    b'\\' => self.escaped = true,
                    b'"' => self.quoted = false,
                    _ => {}
                }
            } else {
                match byte {
                    b'"' => self.quoted = true,
                    b'{' | b'[' => self.depth = self.depth.saturating_add(1),
                    b'}' | b']' => {
                        self.depth = self.depth.saturating_sub(1);
                        self.done |= self.depth == 0;
                    }
                    _ => {}
                }
            }
        }
    }
}

#[derive(Debug)]
struct Lane {
    kind: Kind,
    id: String,
    name: String,
    signature: Option<Signature>,
    waiting: String,
    /// Some of it was written.
    open: bool,
    /// At least one byte of its arguments came.
    fed: bool,
    closed: bool,
    json: JsonEnd,
}

/// Orders the parts of one streamed answer.
#[derive(Debug)]
pub(crate) struct Sequencer {
    lanes: VecDeque<Lane>,
    /// Calls that were closed: what upstreams repeat about them afterwards is no new call.
    done: BTreeSet<u64>,
    waiting: usize,
    started: bool,
    called: bool,
    finish: Option<(FinishReason, Option<String>)>,
    ended: bool,
    /// What ids that an upstream leaves out are made of.
    id_base: String,
    made: u64,
}

impl Sequencer {
    /// For an answer whose missing ids are made from `id_base`.
    pub(crate) fn new(id_base: &str) -> Self {
        Self {
            lanes: VecDeque::new(),
            done: BTreeSet::new(),
            waiting: 0,
            started: false,
            called: false,
            finish: None,
            ended: false,
            id_base: id_base.to_owned(),
            made: 0,
        }
    }

    /// Nothing more is taken.
    pub(crate) fn is_over(&self) -> bool {
        self.ended
    }

    /// The upstream said why the answer ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.finish.is_some()
    }

    /// The answer begins; later calls change nothing.
    pub(crate) fn start(&mut self, id: &str, model: &str, out: &mut Vec<InnerEvent>) {
        if !self.started {
            self.started = true;
            out.push(InnerEvent::Start { id: id.to_owned(), model: model.to_owned() });
        }
    }

    pub(crate) fn text(&mut self, text: &str, out: &mut Vec<InnerEvent>) {
        self.plain(Kind::Text, text, out);
    }

    pub(crate) fn refusal(&mut self, text: &str, out: &mut Vec<InnerEvent>) {
        self.plain(Kind::Refusal, text, out);
    }

    pub(crate) fn thinking(&mut self, text: &str, out: &mut Vec<InnerEvent>) {
        self.plain(Kind::Thinking, text, out);
    }

    fn plain(&mut self, kind: Kind, text: &str, out: &mut Vec<InnerEvent>) {
        if text.is_empty() || self.ended {
            return;
        }
        self.start("", "", out);
        // The common case: more of the block that is open, with nothing behind it.
        if let [lane] = self.lanes.make_contiguous()
            && lane.kind == kind
            && lane.open
            && !lane.closed
        {
            out.push(InnerEvent::Delta(text.to_owned()));
            return;
        }
        match self.lanes.back_mut() {
            Some(lane) if lane.kind == kind && !lane.closed => lane.waiting.push_str(text),
            _ => self.lanes.push_back(Lane::new(kind, text)),
        }
        self.wait(text.len(), out);
    }

    /// A block of reasoning is signed: the last one, or one without text.
    pub(crate) fn sign(&mut self, signature: Signature, out: &mut Vec<InnerEvent>) {
        if self.ended {
            return;
        }
        self.start("", "", out);
        match self.lanes.back_mut() {
            Some(lane) if lane.kind == Kind::Thinking && lane.signature.is_none() && !lane.closed => {
                lane.signature = Some(signature);
                lane.closed = true;
            }
            _ => {
                let mut lane = Lane::new(Kind::Thinking, "");
                lane.signature = Some(signature);
                lane.closed = true;
                self.lanes.push_back(lane);
            }
        }
        self.wait(0, out);
    }

    /// Hidden reasoning, whole.
    pub(crate) fn redacted(&mut self, signature: Signature, out: &mut Vec<InnerEvent>) {
        if self.ended {
            return;
        }
        self.start("", "", out);
        // It waits as a block of reasoning without text whose kind stands in `name`.
        let mut lane = Lane::new(Kind::Thinking, "");
        lane.name = REDACTED.to_owned();
        lane.signature = Some(signature);
        lane.closed = true;
        self.lanes.push_back(lane);
        self.wait(0, out);
    }

    /// More of a call. `key` numbers the calls of this answer; id and name are taken when they come.
    pub(crate) fn tool(
        &mut self,
        key: u64,
        id: &str,
        name: &str,
        arguments: &str,
        out: &mut Vec<InnerEvent>,
    ) {
        if self.ended || self.done.contains(&key) {
            return;
        }
        self.start("", "", out);
        let index = match self.lanes.iter().position(|lane| lane.kind == Kind::Tool(key)) {
            Some(index) => index,
            None if id.is_empty() && name.is_empty() && arguments.is_empty() => return,
            None => {
                self.lanes.push_back(Lane::new(Kind::Tool(key), ""));
                self.lanes.len() - 1
            }
        };
        let Some(lane) = self.lanes.get_mut(index) else { return };
        if lane.closed {
            return;
        }
        if lane.id.is_empty() {
            lane.id.push_str(id);
        }
        if lane.name.is_empty() {
            lane.name.push_str(name);
        }
        lane.fed |= !arguments.is_empty();
        lane.json.feed(arguments);
        lane.waiting.push_str(arguments);
        self.wait(arguments.len(), out);
    }

    /// The signature of a call, before its first piece is written.
    pub(crate) fn sign_tool(&mut self, key: u64, signature: Signature) {
        match self.lanes.iter_mut().find(|lane| lane.kind == Kind::Tool(key)) {
            Some(lane) => lane.signature = Some(signature),
            None => {
                let mut lane = Lane::new(Kind::Tool(key), "");
                lane.signature = Some(signature);
                self.lanes.push_back(lane);
            }
        }
    }

    /// The upstream said that this call is whole.
    pub(crate) fn close_tool(&mut self, key: u64, out: &mut Vec<InnerEvent>) {
        if let Some(lane) = self.lanes.iter_mut().find(|lane| lane.kind == Kind::Tool(key)) {
            lane.closed = true;
        }
        self.pump(out);
    }

    /// The upstream said that the last block of text or reasoning is whole.
    pub(crate) fn close_plain(&mut self, out: &mut Vec<InnerEvent>) {
        if let Some(lane) = self.lanes.back_mut()
            && !matches!(lane.kind, Kind::Tool(_))
        {
            lane.closed = true;
        }
        self.pump(out);
    }

    /// The upstream said why the answer ended; the first reason counts. A plain stop after a call means the call.
    pub(crate) fn finish(&mut self, reason: FinishReason, stop_sequence: Option<String>) {
        if self.finish.is_none() {
            self.finish = Some((reason, stop_sequence));
        }
    }

    /// The answer is whole: closes what is open and says so. Without a reason it was cut off.
    pub(crate) fn end(&mut self, out: &mut Vec<InnerEvent>) {
        if self.ended {
            return;
        }
        let Some((reason, stop_sequence)) = self.finish.take() else {
            self.fail(UpstreamFailure::truncated(), out);
            return;
        };
        self.start("", "", out);
        for lane in &mut self.lanes {
            lane.closed = true;
        }
        self.pump(out);
        if self.ended {
            return;
        }
        let reason = if reason == FinishReason::Stop && self.called { FinishReason::ToolUse } else { reason };
        self.ended = true;
        out.push(InnerEvent::Finish { reason, stop_sequence });
        out.push(InnerEvent::End);
    }

    /// The answer broke off.
    pub(crate) fn fail(&mut self, failure: UpstreamFailure, out: &mut Vec<InnerEvent>) {
        if !self.ended {
            self.ended = true;
            out.push(InnerEvent::Failed(failure));
        }
    }

    fn wait(&mut self, more: usize, out: &mut Vec<InnerEvent>) {
        self.waiting += more;
        self.pump(out);
        if self.waiting > WAITING || self.lanes.len() > LANES || self.done.len() > CALLS {
            self.fail(UpstreamFailure::malformed("too much of it is interleaved"), out);
        }
    }

    /// Writes what can be written in order.
    fn pump(&mut self, out: &mut Vec<InnerEvent>) {
        while !self.ended {
            let last = self.lanes.len() == 1;
            let Some(lane) = self.lanes.front_mut() else { return };
            if lane.name == REDACTED && lane.kind == Kind::Thinking {
                out.extend(lane.signature.take().map(InnerEvent::Redacted));
                self.lanes.pop_front();
                continue;
            }
            let tool = matches!(lane.kind, Kind::Tool(_));
            let over = lane.closed || (!last && (!tool || lane.json.done));
            if !lane.open {
                if tool && lane.name.is_empty() {
                    if over {
                        self.fail(UpstreamFailure::malformed("it calls a tool without naming it"), out);
                    }
                    return;
                }
                if tool && lane.id.is_empty() {
                    if !over {
                        return;
                    }
                    lane.id = format!("call_{}_{}", self.id_base, self.made);
                    self.made += 1;
                }
                lane.open = true;
                self.called |= tool;
                out.push(InnerEvent::Open(match lane.kind {
                    Kind::Text => BlockKind::Text,
                    Kind::Refusal => BlockKind::Refusal,
                    Kind::Thinking => BlockKind::Thinking,
                    Kind::Tool(_) => BlockKind::Tool {
                        id: lane.id.clone(),
                        name: lane.name.clone(),
                        signature: lane.signature.take(),
                    },
                }));
            }
            if !lane.waiting.is_empty() {
                self.waiting = self.waiting.saturating_sub(lane.waiting.len());
                out.push(InnerEvent::Delta(std::mem::take(&mut lane.waiting)));
            }
            if !over {
                return;
            }
            if tool && !lane.fed {
                out.push(InnerEvent::Delta("{}".to_owned()));
            }
            out.extend(lane.signature.take().map(InnerEvent::Sign));
            out.push(InnerEvent::Close);
            if let Kind::Tool(key) = lane.kind {
                self.done.insert(key);
            }
            self.lanes.pop_front();
        }
    }
}

/// Marks a waiting block of hidden reasoning; no tool lane is asked for it.
const REDACTED: &str = "\0redacted";

impl Lane {
    fn new(kind: Kind, waiting: &str) -> Self {
        Self {
            kind,
            id: String::new(),
            name: String::new(),
            signature: None,
            waiting: waiting.to_owned(),
            open: false,
            fed: false,
            closed: false,
            json: JsonEnd::default(),
        }
    }
}
