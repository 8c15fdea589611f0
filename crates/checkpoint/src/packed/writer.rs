use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, json};
use tensor::DType;

use super::{ALIGN, BLOCK, CHECKSUMS, PackedInfo, checksum};

/// A norm's weight or a bias.
#[derive(Clone, Debug, PartialEq)]
pub struct PackedVector {
    /// The tensor's name.
    pub name: String,
    /// The type that it is stored in.
    pub dtype: DType,
    /// Its elements, exact in that type.
    pub values: Vec<f32>,
}

/// Writes a packed checkpoint from its first byte to its last.
pub struct PackedWriter {
    file: BufWriter<File>,
    /// Bytes that the weights not yet written take.
    left: Vec<usize>,
    vectors: Vec<PackedVector>,
    /// What has been written of the current block.
    block: Vec<u8>,
    checksums: Vec<u64>,
}

impl PackedWriter {
    /// Makes the file and writes its header. The weights of `info` are written next, in its order.
    ///
    /// # Errors
    /// The file is there already, or can't be written.
    pub fn create(path: &Path, info: &PackedInfo, vectors: Vec<PackedVector>) -> io::Result<Self> {
        let header = header(info, &vectors)?;
        let mut file = BufWriter::new(File::create_new(path)?);
        file.write_all(&header)?;
        Ok(PackedWriter {
            file,
            left: info.weights.iter().rev().map(|weight| weight.bytes).collect(),
            vectors,
            block: Vec::with_capacity(BLOCK),
            checksums: vec![checksum(&header)],
        })
    }

    /// Writes the next weight.
    ///
    /// # Errors
    /// The file can't be written.
    ///
    /// # Panics
    /// If all have been written, or this one is longer than it was said to be.
    pub fn weight(&mut self, bytes: &[u8]) -> io::Result<()> {
        let length = self.left.pop().expect("no more weights than were announced");
        assert!(bytes.len() <= length && length - bytes.len() < ALIGN, "a weight as long as announced");
        self.write(bytes)?;
        self.write(&[0; ALIGN][..length - bytes.len()])
    }

    /// Writes vectors and checksums, and waits until all is on the disk.
    ///
    /// # Errors
    /// The file can't be written.
    ///
    /// # Panics
    /// If a weight is missing.
    pub fn finish(mut self) -> io::Result<()> {
        assert!(self.left.is_empty(), "all weights that were announced");
        for vector in std::mem::take(&mut self.vectors) {
            self.write(&stored(&vector))?;
        }
        if !self.block.is_empty() {
            self.checksums.push(checksum(&self.block));
        }
        for checksum in &self.checksums {
            self.file.write_all(&checksum.to_le_bytes())?;
        }
        self.file.into_inner().map_err(|error| error.into_error())?.sync_all()
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK {
                self.checksums.push(checksum(&self.block));
                self.block.clear();
            }
            bytes = later;
        }
        Ok(())
    }
}

/// As a file holds it.
fn stored(vector: &PackedVector) -> Vec<u8> {
    let values = vector.values.iter();
    match vector.dtype {
        DType::F32 => values.flat_map(|x| x.to_le_bytes()).collect(),
        DType::F16 => values.flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => values.flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect(),
    }
}

/// Length and JSON, padded so that the data begins aligned.
fn header(info: &PackedInfo, vectors: &[PackedVector]) -> io::Result<Vec<u8>> {
    let mut json = Map::new();
    let metadata = json!({ "format": "anysplit-packed", "info": serde_json::to_string(info)? });
    json.insert("__metadata__".into(), metadata);
    let mut at = 0;
    let mut add = |name: &str, dtype: &str, shape: usize, bytes: usize| {
        let entry = json!({ "dtype": dtype, "shape": [shape], "data_offsets": [at, at + bytes] });
        json.insert(name.into(), entry);
        at += bytes;
        at
    };
    let mut data = 0;
    for weight in &info.weights {
        data = add(&weight.name, "U8", weight.bytes, weight.bytes);
    }
    for PackedVector { name, dtype, values } in vectors {
        let spelled = match dtype {
            DType::F32 => "F32",
            DType::F16 => "F16",
            DType::BF16 => "BF16",
        };
        data = add(name, spelled, values.len(), values.len() * dtype.bytes());
    }
    let checksums = 1 + data.div_ceil(BLOCK);
    add(CHECKSUMS, "U64", checksums, 8 * checksums);
    let mut json = serde_json::to_vec(&json)?;
    json.resize((8 + json.len()).next_multiple_of(ALIGN) - 8, b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    Ok(header)
}
