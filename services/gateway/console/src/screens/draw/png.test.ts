import { describe, expect, test } from "vitest";
import { textsOf } from "./png";

const bytes = (text: string) => [...text].map((letter) => letter.charCodeAt(0));
const utf8 = (text: string) => [...new TextEncoder().encode(text)];

function chunk(type: string, content: number[]): number[] {
  const length = content.length;
  return [length >>> 24, (length >>> 16) & 255, (length >>> 8) & 255, length & 255, ...bytes(type), ...content, 0, 0, 0, 0];
}

const SIGNATURE = [0x89, ...bytes("PNG\r\n"), 0x1a, 0x0a];
const png = (...chunks: number[][]) => new Uint8Array([...SIGNATURE, ...chunks.flat(), ...chunk("IEND", [])]);

describe("the texts in a PNG", () => {
  test("each byte of a tEXt chunk is a letter of Latin-1", () => {
    const found = textsOf(png(chunk("tEXt", [...bytes("parameters"), 0, ...bytes("a \u00e9\u0096\nSteps: 1")])));
    expect(found).toEqual(new Map([["parameters", "a é\u0096\nSteps: 1"]]));
  });

  test("an iTXt chunk is UTF-8, behind its language and its translated keyword", () => {
    const content = [...bytes("parameters"), 0, 0, 0, ...bytes("ja"), 0, ...utf8("設定"), 0, ...utf8("壁 😀")];
    expect(textsOf(png(chunk("iTXt", content)))).toEqual(new Map([["parameters", "壁 😀"]]));
  });

  test("they are found behind the pixels, too, and beside other chunks", () => {
    const found = textsOf(png(chunk("IDAT", bytes("tEXtparameters\0no")), chunk("tEXt", bytes("a\0b")), chunk("tEXt", bytes("c\0d"))));
    expect(found).toEqual(new Map([["a", "b"], ["c", "d"]]));
  });

  test("a compressed text and one without its keyword are left out", () => {
    const compressed = [...bytes("parameters"), 0, 1, 0, 0, 0, 120, 156];
    expect(textsOf(png(chunk("iTXt", compressed), chunk("tEXt", bytes("nothing"))))).toEqual(new Map());
  });

  test("a file that is cut off gives what is there", () => {
    const whole = png(chunk("tEXt", bytes("a\0b")), chunk("tEXt", bytes("c\0dddd")));
    expect(textsOf(whole.subarray(0, whole.length - 18))).toEqual(new Map([["a", "b"]]));
  });

  test.each([["an empty file", []], ["a JPEG", [0xff, 0xd8, 0xff, 0xe0]]])("%s is no PNG", (_name, content) => {
    expect(textsOf(new Uint8Array(content))).toBeNull();
  });
});
