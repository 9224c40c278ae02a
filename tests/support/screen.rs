//! What a guest's screen shows, read back from a picture of it: the font is taken out of the kernel
//! under test, so each cell of 8 by 16 pixels is one of its characters, or none.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use super::guest::Guest;

/// Size of a character, pixels.
const WIDTH: usize = 8;
const HEIGHT: usize = 16;
/// How the kernel's font of this size begins: nothing, then a face. No other table does.
const SECOND: [u8; HEIGHT] = [
    0, 0, 0x7e, 0x81, 0xa5, 0x81, 0x81, 0xbd, 0x99, 0x81, 0x81, 0x7e, 0, 0, 0, 0,
];

/// Largest picture that a document may hold, bytes.
const MAX_PNG: usize = 100_000;

/// The glyphs of the printable ASCII characters.
pub struct Font(BTreeMap<[u8; HEIGHT], char>);

impl Font {
    /// Out of a bzImage whose payload is packed with zstd (Documentation/arch/x86/boot.rst).
    pub fn of_kernel(path: &Path) -> Self {
        let image = fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        let number = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap()) as usize;
        // setup_sects, payload_offset, payload_length; the last four bytes are the unpacked size.
        let begin = (usize::from(image[0x1f1]) + 1) * 512 + number(0x248);
        let payload = &image[begin..begin + number(0x24c) - 4];
        let mut kernel = Vec::new();
        let mut reader = zstd::Decoder::new(payload).expect("a kernel packed with zstd");
        std::io::copy(&mut reader, &mut kernel).expect("the kernel's payload");
        let start = [[0; HEIGHT], SECOND].concat();
        let at = kernel
            .windows(start.len())
            .position(|bytes| bytes == start)
            .expect("the kernel has the 8x16 font");
        let glyph = |code: usize| -> [u8; HEIGHT] {
            let glyph = &kernel[at + code * HEIGHT..][..HEIGHT];
            glyph.try_into().expect("16 bytes")
        };
        Self(
            (0x20..0x7f_u8)
                .map(|code| (glyph(code.into()), char::from(code)))
                .collect(),
        )
    }
}

/// A screendump.
pub struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    /// A binary PPM (`P6`, 8 bits), as QEMU writes it, without comments.
    pub fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        let mut fields = bytes.splitn(4, |byte| byte.is_ascii_whitespace());
        let mut field = || String::from_utf8_lossy(fields.next().expect("a header")).into_owned();
        assert_eq!(field(), "P6");
        let (width, height) = (field(), field());
        let (width, height): (usize, usize) = (width.parse().unwrap(), height.parse().unwrap());
        let begin = bytes.len() - 3 * width * height;
        let pixels = bytes[begin..].chunks_exact(3);
        let pixels = pixels.map(|p| [p[0], p[1], p[2]]).collect();
        Self {
            width,
            height,
            pixels,
        }
    }

    /// The rows of text that it shows; a cell that is no character is `\u{fffd}`.
    pub fn text(&self, font: &Font) -> Vec<String> {
        let row = |row: usize| {
            let line: String = (0..self.width / WIDTH)
                .map(|column| self.cell(font, row, column))
                .collect();
            line.trim_end().to_owned()
        };
        (0..self.height / HEIGHT).map(row).collect()
    }

    fn cell(&self, font: &Font, row: usize, column: usize) -> char {
        let at =
            |y: usize, x: usize| self.pixels[(row * HEIGHT + y) * self.width + column * WIDTH + x];
        // Which of the two colours of a cell is the paper is not known: one of both fits.
        let corner = at(0, 0);
        let mut ink = [0_u8; HEIGHT];
        for (y, line) in ink.iter_mut().enumerate() {
            for x in 0..WIDTH {
                *line = *line << 1 | u8::from(at(y, x) != corner);
            }
        }
        let inverse = ink.map(|line| !line);
        let found = font.0.get(&ink).or_else(|| font.0.get(&inverse));
        found.copied().unwrap_or('\u{fffd}')
    }

    /// Saves it as a PNG with a palette (W3C PNG, third edition). Answers its size in bytes.
    pub fn save_png(&self, path: &Path) -> usize {
        let mut palette: Vec<[u8; 3]> = self.pixels.clone();
        palette.sort_unstable();
        palette.dedup();
        assert!(
            palette.len() <= 16,
            "{} colours are no text screen",
            palette.len()
        );
        let number = |pixel: &[u8; 3]| palette.binary_search(pixel).expect("its own palette") as u8;
        let mut data = ZlibEncoder::new(Vec::new(), Compression::best());
        for line in self.pixels.chunks(self.width) {
            // No filter, then two pixels a byte.
            let pairs = line.chunks(2);
            let bytes = pairs.map(|pair| number(&pair[0]) << 4 | pair.get(1).map_or(0, number));
            let bytes: Vec<u8> = std::iter::once(0).chain(bytes).collect();
            data.write_all(&bytes).expect("memory");
        }
        let size = |n: usize| u32::try_from(n).expect("a screen").to_be_bytes();
        let head = [&size(self.width)[..], &size(self.height), &[4, 3, 0, 0, 0]].concat();
        let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
        let chunks: [(&[u8; 4], Vec<u8>); 4] = [
            (b"IHDR", head),
            (b"PLTE", palette.concat()),
            (b"IDAT", data.finish().expect("memory")),
            (b"IEND", Vec::new()),
        ];
        for (name, body) in &chunks {
            let body = [&name[..], body].concat();
            let mut sum = Crc::new();
            sum.update(&body);
            png.extend(size(body.len() - 4));
            png.extend(&body);
            png.extend(sum.sum().to_be_bytes());
        }
        fs::write(path, &png).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        png.len()
    }
}

/// Takes pictures until one shows every word of `wanted`, and keeps that one.
pub fn see(guest: &Guest, font: &Font, dir: &Path, name: &str, wanted: &[&str]) {
    let (ppm, png) = (dir.join("screen.ppm"), dir.join(format!("{name}.png")));
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        guest.screendump(&ppm);
        let picture = Picture::read(&ppm);
        let text = picture.text(font).join("\n");
        if wanted.iter().all(|word| text.contains(word)) {
            assert!(
                !text.contains('\u{fffd}'),
                "not everything is legible:\n{text}"
            );
            let size = picture.save_png(&png);
            assert!(size <= MAX_PNG, "{} has {size} bytes", png.display());
            return;
        }
        assert!(
            Instant::now() < until,
            "{name}: {wanted:?} not on the screen:\n{text}"
        );
        // The screen has no event that could be waited for.
        std::thread::sleep(Duration::from_millis(300));
    }
}
