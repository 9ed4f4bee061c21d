import { beforeAll, expect, it, vi } from "vitest";
import type { JobStatus } from "../api/types";
import { isLora, modelInputOf, modelOf, nameOfModel, readStatus } from "./pictures";

beforeAll(() => void vi.stubGlobal("navigator", { languages: ["en"] }));

const job = (input: object) => ({ id: "ID", input }) as unknown as JobStatus;

it("draws again with what a job has drawn with", () => {
  expect(modelOf(job({ train: {} }))).toBe("ID");
  for (const input of [{ model: "owner/name" }, { model: ["a", { model: "b", weight: 0.5 }] }, { model: "lora", base: "base" }]) {
    expect(modelInputOf(modelOf(job(input)))).toEqual(input);
  }
});

it("says it in words", () => {
  expect(nameOfModel(modelOf(job({ model: ["sd_v1-5_vae.ckpt", { model: "b", weight: 0.5 }] })))).toBe("Base model of this server + b × 0.5");
  expect(nameOfModel(modelOf(job({ model: "lora", base: "base" })))).toBe("lora (on base)");
  expect(nameOfModel("0a1b2c3d-6f69-5d16-8849-7d71e455b1dc")).toBe("Training 0a1b2c3d");
});

it("knows a LoRA by what was asked for", () => {
  expect(isLora({ train: { lora_rank: 64 } })).toBe(true);
  for (const input of [{ train: { lora_rank: null } }, { train: {} }, { train: null }, { model: "owner/name" }]) expect(isLora(input)).toBe(false);
});

it.each(["", "..", "../jobs", "%", "toString", "6335978d", "6335978d-6aed-5f49-b848-85ff70eccf47/x"])("asks nobody for a job whose id is none: %s", async (text) => {
  const asked = vi.fn();
  vi.stubGlobal("fetch", asked);
  await expect(readStatus(text)).rejects.toMatchObject({ status: 404 });
  expect(asked).not.toHaveBeenCalled();
});

it.each(['{"model":[]}', '{"model":[1]}', "{}", "[]", "null", "1"])("takes an odd address of a model for a name: %s", (text) => {
  expect(modelInputOf(text)).toEqual({ model: text });
  expect(nameOfModel(text)).toBe(text);
});
