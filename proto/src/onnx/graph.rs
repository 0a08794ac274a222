//! A graph that grows node by node, and the declared models in it: the same forward passes as the agent's
//! (`client/src/train/torch/nets.rs`), in ONNX's operators.

use super::ir::{self, Attribute, Node, Tensor};
use bytes::Bytes;
use falaj_core::model::{Conv, Layer, ModelSpec, Tokens};

/// What normalisation adds to a variance: as trainers do.
const NORM_EPSILON: f32 = 1e-5;

/// Nodes and constants so far. Values are known by name; each node gives one.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) nodes: Vec<Node>,
    pub(super) tensors: Vec<Tensor>,
}

impl Graph {
    /// Adds a node; gives the name of its value.
    pub(super) fn node(&mut self, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> String {
        let name = format!("{}_{}", op.to_lowercase(), self.nodes.len());
        self.named(name, op, inputs, attributes)
    }

    /// Adds a node whose value has a name of its own.
    pub(super) fn named(
        &mut self,
        name: String,
        op: &str,
        inputs: &[&str],
        attribute: Vec<Attribute>,
    ) -> String {
        self.nodes.push(Node {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.to_owned(),
            attribute,
        });
        name
    }

    /// Adds a tensor of which the bytes are there, as the format wants them.
    pub(super) fn tensor(
        &mut self,
        name: String,
        dims: Vec<i64>,
        data_type: i32,
        raw: Bytes,
    ) -> String {
        self.tensors.push(Tensor { dims, data_type, name: name.clone(), raw_data: Some(raw) });
        name
    }

    fn constant(&mut self, dims: Vec<i64>, data_type: i32, raw: Vec<u8>) -> String {
        self.tensor(format!("constant_{}", self.tensors.len()), dims, data_type, raw.into())
    }

    /// One number.
    pub(super) fn scalar(&mut self, value: f32) -> String {
        self.constant(Vec::new(), ir::F32, value.to_le_bytes().to_vec())
    }

    /// A row of numbers.
    pub(super) fn floats(&mut self, values: &[f32]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(vec![length(values.len())], ir::F32, raw)
    }

    /// A row of whole numbers, for shapes and places.
    pub(super) fn ints(&mut self, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(vec![length(values.len())], ir::I64, raw)
    }

    /// A row of truths.
    pub(super) fn bools(&mut self, values: &[bool]) -> String {
        let raw = values.iter().map(|&v| u8::from(v)).collect();
        self.constant(vec![length(values.len())], ir::BOOL, raw)
    }

    /// The same values in another shape; a zero stands for as many as there are, which records always are.
    fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.node("Reshape", &[x, &shape], Vec::new())
    }

    fn cast(&mut self, x: &str, to: i32) -> String {
        self.node("Cast", &[x], vec![Attribute::int("to", i64::from(to))])
    }

    /// Truths as ones and zeros.
    pub(super) fn as_numbers(&mut self, truths: &str) -> String {
        self.cast(truths, ir::F32)
    }

    /// Numbers as truths: whether they are not zero.
    pub(super) fn as_truths(&mut self, numbers: &str) -> String {
        self.cast(numbers, ir::BOOL)
    }
}

/// A number of things, where the format wants one with a sign.
pub(super) fn length(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// A model's layers, taken in the order in which its parameters are.
struct Net<'a> {
    graph: &'a mut Graph,
    layers: &'a [Layer],
    at: usize,
}

/// Adds a model's forward pass over records `[batch, inputs]`; gives the name of its logits `[batch, classes]`.
pub(super) fn forward(graph: &mut Graph, model: &ModelSpec, layers: &[Layer], x: &str) -> String {
    let mut net = Net { graph, layers, at: 0 };
    match *model {
        ModelSpec::Logistic { .. } | ModelSpec::Mlp { .. } => net.chain(x.to_owned()),
        ModelSpec::Cnn { height, width, channels, .. } => {
            net.convolutions([channels, height, width], x)
        }
        ModelSpec::Transformer { tokens, width, heads, blocks, .. } => {
            let sizes = Sizes { length: tokens.length(), width, heads };
            let h = net.tokens(tokens, x);
            net.encoder(sizes, blocks, h)
        }
    }
}

/// The sizes of an attention.
#[derive(Clone, Copy)]
struct Sizes {
    length: u32,
    width: u32,
    heads: u32,
}

impl Net<'_> {
    /// The names of the next layer's weight and bias.
    fn names(&mut self) -> (String, String) {
        let at = self.at;
        self.at += 1;
        (format!("layers.{at}.weight"), format!("layers.{at}.bias"))
    }

    /// Linear layers with `ReLU` between them, to the last.
    fn chain(&mut self, mut h: String) -> String {
        loop {
            let (w, b) = self.names();
            h = self.graph.node("Gemm", &[&h, &w, &b], vec![Attribute::int("transB", 1)]);
            if self.at >= self.layers.len() {
                return h;
            }
            h = self.graph.node("Relu", &[&h], Vec::new());
        }
    }

    /// `y = W x + b` on the last of three dimensions.
    fn linear(&mut self, x: &str) -> String {
        let (w, b) = self.names();
        let w = self.graph.node("Transpose", &[&w], vec![Attribute::ints("perm", &[1, 0])]);
        let y = self.graph.node("MatMul", &[x, &w], Vec::new());
        self.graph.node("Add", &[&y, &b], Vec::new())
    }

    /// Convolutions over an image or a series, and what follows them.
    fn convolutions(&mut self, [channels, height, width]: [u32; 3], x: &str) -> String {
        let series = height == 1;
        let (mut height, mut width) = (height, width);
        let shape = [0, i64::from(channels), i64::from(height), i64::from(width)];
        let mut h = self.graph.reshape(x, &shape);
        while let Some(&Layer::Conv { conv, .. }) = self.layers.get(self.at) {
            let two = |n: u32| [if series { 1 } else { i64::from(n) }, i64::from(n)];
            let (w, b) = self.names();
            let how = vec![
                Attribute::ints("kernel_shape", &two(conv.kernel)),
                Attribute::ints("strides", &two(conv.stride)),
            ];
            h = self.graph.node("Conv", &[&h, &w, &b], how);
            // That they fit was checked when the layers were made.
            let out = |side: u32| side.saturating_sub(conv.kernel) / conv.stride.max(1) + 1;
            (height, width) = (if series { 1 } else { out(height) }, out(width));
            if conv.groups > 0 {
                h = self.group_norm(conv, [height, width], &h);
            }
            h = self.graph.node("Relu", &[&h], Vec::new());
            if conv.pool > 1 {
                let pool = two(conv.pool);
                let how =
                    vec![Attribute::ints("kernel_shape", &pool), Attribute::ints("strides", &pool)];
                h = self.graph.node("MaxPool", &[&h], how);
                let pooled = |side: u32| side / conv.pool;
                (height, width) = (if series { 1 } else { pooled(height) }, pooled(width));
            }
        }
        let flat = self.graph.node("Flatten", &[&h], vec![Attribute::int("axis", 1)]);
        self.chain(flat)
    }

    /// Normalises groups of channels, then scale and shift of each channel. The operator of that name scales groups before
    /// version 21, so each group is normalised as if it were a channel.
    fn group_norm(&mut self, conv: Conv, [height, width]: [u32; 2], x: &str) -> String {
        let (w, b) = self.names();
        let (channels, groups) = (i64::from(conv.filters), i64::from(conv.groups));
        let (height, width) = (i64::from(height), i64::from(width));
        let together = self.graph.reshape(x, &[0, groups, channels / groups * height * width]);
        let count = usize::try_from(conv.groups).unwrap_or(usize::MAX);
        let (ones, zeros) =
            (self.graph.floats(&vec![1.0; count]), self.graph.floats(&vec![0.0; count]));
        let how = vec![Attribute::float("epsilon", NORM_EPSILON)];
        let y = self.graph.node("InstanceNormalization", &[&together, &ones, &zeros], how);
        let y = self.graph.reshape(&y, &[0, channels, height, width]);
        let axes = self.graph.ints(&[1, 2]);
        let w = self.graph.node("Unsqueeze", &[&w, &axes], Vec::new());
        let b = self.graph.node("Unsqueeze", &[&b, &axes], Vec::new());
        let y = self.graph.node("Mul", &[&y, &w], Vec::new());
        self.graph.node("Add", &[&y, &b], Vec::new())
    }

    /// Inputs as tokens `[batch, length, width]`.
    fn tokens(&mut self, tokens: Tokens, x: &str) -> String {
        match tokens {
            Tokens::Columns { .. } => {
                let (w, b) = self.names();
                let axes = self.graph.ints(&[2]);
                let x = self.graph.node("Unsqueeze", &[x, &axes], Vec::new());
                let y = self.graph.node("Mul", &[&x, &w], Vec::new());
                self.graph.node("Add", &[&y, &b], Vec::new())
            }
            Tokens::Codes { vocabulary, .. } => {
                let codes = self.codes(vocabulary, x);
                let (w, _) = self.names();
                let y = self.graph.node("Gather", &[&w, &codes], vec![Attribute::int("axis", 0)]);
                self.positioned(&y)
            }
            Tokens::Steps { length, channels } => {
                let steps = self.graph.reshape(x, &[0, i64::from(length), i64::from(channels)]);
                let y = self.linear(&steps);
                self.positioned(&y)
            }
        }
    }

    /// The codes of inputs that were scaled from `0..vocabulary` to [-1, 1].
    fn codes(&mut self, vocabulary: u32, x: &str) -> String {
        #[expect(clippy::cast_precision_loss, reason = "inputs are f32 too")]
        let last = vocabulary.saturating_sub(1) as f32;
        let (one, half) = (self.graph.scalar(1.0), self.graph.scalar(last / 2.0));
        let (zero, last) = (self.graph.scalar(0.0), self.graph.scalar(last));
        let codes = self.graph.node("Add", &[x, &one], Vec::new());
        let codes = self.graph.node("Mul", &[&codes, &half], Vec::new());
        let codes = self.graph.node("Round", &[&codes], Vec::new());
        let codes = self.graph.node("Clip", &[&codes, &zero, &last], Vec::new());
        self.graph.cast(&codes, ir::I64)
    }

    /// Tokens with each position's vector added.
    fn positioned(&mut self, x: &str) -> String {
        let (w, _) = self.names();
        self.graph.node("Add", &[x, &w], Vec::new())
    }

    /// Blocks of attention and feed-forward, the mean over the tokens, and the output.
    fn encoder(&mut self, sizes: Sizes, blocks: u32, mut h: String) -> String {
        for _ in 0..blocks {
            let normal = self.layer_norm(&h);
            let mixed = self.attention(sizes, &normal);
            h = self.graph.node("Add", &[&h, &mixed], Vec::new());
            let normal = self.layer_norm(&h);
            let inner = self.linear(&normal);
            let inner = self.gelu(&inner);
            let fed = self.linear(&inner);
            h = self.graph.node("Add", &[&h, &fed], Vec::new());
        }
        let normal = self.layer_norm(&h);
        let over = vec![Attribute::ints("axes", &[1]), Attribute::int("keepdims", 0)];
        let mean = self.graph.node("ReduceMean", &[&normal], over);
        self.chain(mean)
    }

    fn layer_norm(&mut self, x: &str) -> String {
        let (w, b) = self.names();
        let how = vec![Attribute::int("axis", -1), Attribute::float("epsilon", NORM_EPSILON)];
        self.graph.node("LayerNormalization", &[x, &w, &b], how)
    }

    /// `x / 2 (1 + erf(x / sqrt(2)))`: an operator of that name came with version 20.
    fn gelu(&mut self, x: &str) -> String {
        let root = self.graph.scalar(core::f32::consts::SQRT_2);
        let (one, half) = (self.graph.scalar(1.0), self.graph.scalar(0.5));
        let part = self.graph.node("Div", &[x, &root], Vec::new());
        let part = self.graph.node("Erf", &[&part], Vec::new());
        let part = self.graph.node("Add", &[&part, &one], Vec::new());
        let whole = self.graph.node("Mul", &[x, &part], Vec::new());
        self.graph.node("Mul", &[&whole, &half], Vec::new())
    }

    /// Multi-head self-attention over tokens `[batch, length, width]`.
    fn attention(&mut self, sizes: Sizes, x: &str) -> String {
        let (length, width) = (i64::from(sizes.length), i64::from(sizes.width));
        let heads = i64::from(sizes.heads);
        let three = self.linear(x);
        let three = self.graph.reshape(&three, &[0, length, 3, heads, width / heads]);
        // [3, batch, heads, length, width of a head]
        let order = vec![Attribute::ints("perm", &[2, 0, 3, 1, 4])];
        let three = self.graph.node("Transpose", &[&three], order);
        let [query, key, value] = [0_i64, 1, 2].map(|part| {
            let at = self.graph.constant(Vec::new(), ir::I64, part.to_le_bytes().to_vec());
            self.graph.node("Gather", &[&three, &at], vec![Attribute::int("axis", 0)])
        });
        let turned = vec![Attribute::ints("perm", &[0, 1, 3, 2])];
        let key = self.graph.node("Transpose", &[&key], turned);
        let scores = self.graph.node("MatMul", &[&query, &key], Vec::new());
        #[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
        let root = ((sizes.width / sizes.heads.max(1)) as f32).sqrt();
        let root = self.graph.scalar(root);
        let scores = self.graph.node("Div", &[&scores, &root], Vec::new());
        let shares = self.graph.node("Softmax", &[&scores], vec![Attribute::int("axis", -1)]);
        let mixed = self.graph.node("MatMul", &[&shares, &value], Vec::new());
        let order = vec![Attribute::ints("perm", &[0, 2, 1, 3])];
        let mixed = self.graph.node("Transpose", &[&mixed], order);
        let together = self.graph.reshape(&mixed, &[0, length, width]);
        self.linear(&together)
    }
}
