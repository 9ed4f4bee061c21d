/** What of the chosen files is packed and uploaded, by the rules of docs/datasets.md. */

export interface Chosen<T> {
  /** With its folders, separated by slashes. */
  path: string;
  size: number;
  file: T;
}

export interface LeftOut {
  path: string;
  reason: "kind" | "large";
}

export type Plan<T> =
  | { kind: "zip"; chosen: Chosen<T> }
  | { kind: "pack"; chosen: Chosen<T>[]; leftOut: LeftOut[] }
  | { kind: "none"; reason: "empty" | "mixed" | "many" | "large"; leftOut: LeftOut[] };

export const PICTURES = ["jpg", "jpeg", "jfif", "png", "bmp", "webp", "heic", "heif", "hif", "avif"];
const TEXTS = ["txt", "caption", "yaml", "yml"];
const MAX_PICTURE = 256 * 2 ** 20;
const MAX_TEXT = 64 * 2 ** 10;
const MAX_FILES = 50_000;
export const MAX_ZIP = 10 * 2 ** 30;

export function planOf<T>(given: readonly Chosen<T>[]): Plan<T> {
  const files = withoutRoot(given).filter((each) => !isHidden(each.path));
  const zips = files.filter((each) => suffixOf(each.path) === "zip");
  if (zips.length > 0) {
    const [zip] = zips;
    if (files.length > 1) return { kind: "none", reason: "mixed", leftOut: [] };
    return zip!.size > MAX_ZIP ? { kind: "none", reason: "large", leftOut: [] } : { kind: "zip", chosen: zip! };
  }
  const leftOut = files.flatMap((each) => {
    const reason = reasonOf(each);
    return reason ? [{ path: each.path, reason }] : [];
  });
  const chosen = files.filter((each) => !reasonOf(each)).sort((one, other) => (one.path < other.path ? -1 : 1));
  if (!chosen.some((each) => PICTURES.includes(suffixOf(each.path)))) return { kind: "none", reason: "empty", leftOut };
  if (chosen.length > MAX_FILES) return { kind: "none", reason: "many", leftOut };
  if (chosen.reduce((sum, each) => sum + each.size, 0) > MAX_ZIP) return { kind: "none", reason: "large", leftOut };
  return { kind: "pack", chosen, leftOut };
}

function reasonOf({ path, size }: Chosen<unknown>): LeftOut["reason"] | undefined {
  const suffix = suffixOf(path);
  if (PICTURES.includes(suffix)) return size > MAX_PICTURE ? "large" : undefined;
  if (TEXTS.includes(suffix)) return size > MAX_TEXT ? "large" : undefined;
  return "kind";
}

/** The folder that holds everything is where the dataset begins, whatever its name. */
function withoutRoot<T>(files: readonly Chosen<T>[]): readonly Chosen<T>[] {
  const root = files[0]?.path.split("/", 1)[0];
  const isCommon = files.every((each) => each.path.startsWith(`${root}/`));
  return isCommon ? files.map((each) => ({ ...each, path: each.path.slice(root!.length + 1) })) : files;
}

const isHidden = (path: string): boolean => path.split("/").some((part) => part === "__MACOSX" || part.startsWith("."));

const suffixOf = (path: string): string => /[^/]\.([^./]+)$/.exec(path)?.[1]?.toLowerCase() ?? "";
