//! Choices that a seed repeats.

/// SplitMix64: enough for choices, and the same everywhere.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 and more, below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[usize::try_from(self.below(all.len() as u64)).expect("an index")]
    }
}

/// A text in quotes, as SQL.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// Words that the tables know, so that a value is often one that means something.
const WORDS: &[&str] = &[
    "openai",
    "anthropic",
    "custom",
    "healthy",
    "unhealthy",
    "valid",
    "failed",
    "pending",
    "environment",
    "database",
    "eco",
    "balanced",
    "precision",
    "all",
    "victim-1",
    "victim-2-model",
    "VICTIM-1",
    "steady-0",
    "own-1",
    "",
    " ",
];

impl Chance {
    fn word(&mut self) -> String {
        match self.below(4) {
            0 | 1 => self.of(WORDS).to_owned(),
            2 => {
                let length = self.below(80);
                (0..length)
                    .filter_map(|_| {
                        let range = match self.below(3) {
                            0 => 0x7f,
                            1 => 0x2fff,
                            _ => 0x10_ffff,
                        };
                        char::from_u32(u32::try_from(1 + self.below(range)).expect("it fits"))
                    })
                    .collect()
            }
            _ => "x".repeat(usize::try_from(self.below(400)).expect("it fits")),
        }
    }

    fn json(&mut self, depth: u32, thief: &str) -> serde_json::Value {
        use serde_json::{Value, json};
        match self.below(if depth == 0 { 5 } else { 8 }) {
            0 => Value::Null,
            1 => json!(self.next().cast_signed()),
            2 => json!(f64::from_bits(self.next())),
            3 => json!(self.word().replace('\0', "")),
            4 => json!(self.below(2) == 0),
            5 => (0..self.below(5)).map(|_| self.json(depth - 1, thief)).collect(),
            6 => json!({ "base_url": thief, "description": self.json(depth - 1, thief) }),
            _ => (0..self.below(5)).map(|_| (self.word(), self.json(depth - 1, thief))).collect(),
        }
    }

    /// A value of a type, as SQL.
    pub fn value(&mut self, kind: &str, thief: &str) -> String {
        let own = |list: &[&'static str], chance: &mut Self| chance.of(list).to_owned();
        match kind {
            "timestamp" => match self.below(2) {
                0 => own(crate::hostile_rows::TIMES, self),
                _ => format!(
                    "'2000-01-01'::timestamp + {} * interval '1 second'",
                    self.next().cast_signed() % 200_000_000_000
                ),
            },
            "jsonb" => match self.below(3) {
                0 => own(crate::hostile_rows::JSON, self),
                _ => quoted(&self.json(5, thief).to_string().replace("\\u0000", "")),
            },
            "varchar" | "text" => match self.below(6) {
                0 => own(crate::hostile_rows::TEXTS, self),
                1 => quoted(thief),
                2 => "(SELECT api_key_encrypted FROM llm_providers ORDER BY random() LIMIT 1)".to_owned(),
                _ => quoted(&self.word()),
            },
            "int4" => match self.below(2) {
                0 => own(crate::hostile_rows::INTEGERS, self),
                _ => format!("{}", self.next().cast_signed() % 2_147_483_648),
            },
            "numeric" => match self.below(2) {
                0 => own(crate::hostile_rows::NUMBERS, self),
                _ => {
                    format!("{}e{}", self.next().cast_signed() % 1_000_000, self.below(40).cast_signed() - 30)
                }
            },
            "bool" => own(crate::hostile_rows::FLAGS, self),
            "uuid" => own(
                &[
                    "NULL",
                    "gen_random_uuid()",
                    "(SELECT id FROM llm_providers WHERE name NOT LIKE 'steady%' ORDER BY random() LIMIT 1)",
                    "(SELECT m.id FROM llm_models m JOIN llm_providers p ON p.id = m.provider_id WHERE p.name NOT LIKE 'steady%' ORDER BY random() LIMIT 1)",
                ],
                self,
            ),
            _ => "NULL".to_owned(),
        }
    }
}
