//! GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11d), where 2 generates all non-zero elements; addition is xor.
//! The tables are computed by the compiler, in the forms in which the kernels want them.

const POLYNOMIAL: u16 = 0x11d;

/// Order of the multiplicative group: logarithms are taken modulo this.
pub const ORDER: u32 = 255;

const fn powers() -> [u8; 255] {
    let mut table = [0; 255];
    let mut value = 1u16;
    let mut power = 0;
    while power < 255 {
        table[power] = value as u8;
        value <<= 1;
        if value & 0x100 != 0 {
            value ^= POLYNOMIAL;
        }
        power += 1;
    }
    table
}

const fn logarithms() -> [u8; 256] {
    let mut table = [0; 256];
    let mut power = 0;
    while power < 255 {
        table[EXP[power] as usize] = power as u8;
        power += 1;
    }
    table
}

/// `EXP[i]` = 2^i.
pub static EXP: [u8; 255] = powers();

/// `LOG[2^i]` = i for i below 255. There is no logarithm of 0; its place holds 0, the logarithm of 1.
pub static LOG: [u8; 256] = logarithms();

/// The product of two elements.
pub const fn mul(a: u8, b: u8) -> u8 {
    if a == 0 || b == 0 {
        return 0;
    }
    EXP[(LOG[a as usize] as usize + LOG[b as usize] as usize) % 255]
}

const fn products() -> [[u8; 256]; 256] {
    let mut table = [[0; 256]; 256];
    let mut a = 0;
    while a < 256 {
        let mut b = 0;
        while b < 256 {
            table[a][b] = mul(a as u8, b as u8);
            b += 1;
        }
        a += 1;
    }
    table
}

/// `PRODUCTS[c][x]` = c * x.
pub static PRODUCTS: [[u8; 256]; 256] = products();

/// The multiples of one coefficient by the low and the high nibble of a byte; their xor is the product.
#[repr(C, align(32))]
pub struct Nibbles {
    pub low: [u8; 16],
    pub high: [u8; 16],
}

const fn nibbles() -> [Nibbles; 256] {
    let mut table = [const { Nibbles { low: [0; 16], high: [0; 16] } }; 256];
    let mut coefficient = 0;
    while coefficient < 256 {
        let mut nibble = 0;
        while nibble < 16 {
            table[coefficient].low[nibble] = mul(coefficient as u8, nibble as u8);
            table[coefficient].high[nibble] = mul(coefficient as u8, (nibble as u8) << 4);
            nibble += 1;
        }
        coefficient += 1;
    }
    table
}

/// For byte-shuffle instructions, by coefficient.
pub static NIBBLES: [Nibbles; 256] = nibbles();

const fn affine() -> [u64; 256] {
    let mut table = [0; 256];
    let mut coefficient = 0;
    while coefficient < 256 {
        let mut column = 0;
        while column < 8 {
            let product = mul(coefficient as u8, 1 << column);
            let mut bit = 0;
            while bit < 8 {
                if product >> bit & 1 != 0 {
                    table[coefficient] |= 1 << (8 * (7 - bit) + column);
                }
                bit += 1;
            }
            column += 1;
        }
        coefficient += 1;
    }
    table
}

/// Multiplication as a bit matrix for `gf2p8affineqb`, by coefficient: bit i of the result is the parity of the operand
/// masked with byte 7 - i of the matrix (Intel SDM, GF2P8AFFINEQB).
pub static AFFINE: [u64; 256] = affine();

/// What `gf2p8affineqb` with a zero constant does to one byte, bit for bit as its manual page says it.
#[cfg(test)]
pub fn emulate_affine(matrix: u64, operand: u8) -> u8 {
    let rows = matrix.to_le_bytes();
    (0..8).fold(0, |result, bit| result | (((rows[7 - bit] & operand).count_ones() & 1) as u8) << bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Schoolbook multiplication, which shares nothing with the tables.
    fn long_multiplication(a: u8, b: u8) -> u8 {
        let mut product = (0..8).filter(|bit| b >> bit & 1 != 0).fold(0u32, |sum, bit| sum ^ u32::from(a) << bit);
        for bit in (8..16).rev() {
            if product >> bit & 1 != 0 {
                product ^= 0x11d << (bit - 8);
            }
        }
        product as u8
    }

    #[test]
    fn every_table_multiplies() {
        for a in 0..=255u8 {
            let nibbles = &NIBBLES[usize::from(a)];
            for b in 0..=255u8 {
                let expected = long_multiplication(a, b);
                assert_eq!(mul(a, b), expected, "{a} * {b}");
                assert_eq!(PRODUCTS[usize::from(a)][usize::from(b)], expected, "{a} * {b} by product");
                let split = nibbles.low[usize::from(b & 15)] ^ nibbles.high[usize::from(b >> 4)];
                assert_eq!(split, expected, "{a} * {b} by nibbles");
                assert_eq!(emulate_affine(AFFINE[usize::from(a)], b), expected, "{a} * {b} by bit matrix");
            }
        }
    }

    /// The same matrices as ISA-L publishes for this field, so that the emulation above cannot agree with a mistake of
    /// ours about the instruction's order of bits.
    #[test]
    fn bit_matrices_are_those_of_the_literature() {
        let known = [
            (0x00, 0),
            (0x01, 0x0102_0408_1020_4080),
            (0x02, 0x8001_8284_8810_2040),
            (0x03, 0x8103_868c_9830_60c0),
            (0x08, 0x2040_a061_e2c4_8810),
            (0xfe, 0x5ebd_2515_75eb_d7af),
            (0xff, 0x5fbf_211d_65cb_972f),
        ];
        for (coefficient, matrix) in known {
            assert_eq!(AFFINE[coefficient], matrix, "{coefficient}");
        }
    }
}
