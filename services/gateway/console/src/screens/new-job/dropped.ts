/** Files that were dropped or chosen, with their paths. */
import type { Chosen } from "../../state/new-job/packing";

export const ofList = (files: Iterable<File>): Chosen<File>[] =>
  [...files].map((file) => chosen(file.webkitRelativePath || file.name, file));

const chosen = (path: string, file: File): Chosen<File> => ({ path, size: file.size, file });

/** Everything that was dropped, folders with all that is in them. */
export async function ofDrop(data: DataTransfer): Promise<Chosen<File>[]> {
  // The list is empty as soon as the event is over.
  const entries = [...data.items].flatMap((item) => item.webkitGetAsEntry() ?? []);
  if (!entries.length) return ofList(data.files);
  return (await Promise.all(entries.map(inside))).flat();
}

async function inside(entry: FileSystemEntry): Promise<Chosen<File>[]> {
  if (entry.isFile) {
    const file = await new Promise<File>((take, refuse) => (entry as FileSystemFileEntry).file(take, refuse));
    return [chosen(entry.fullPath.replace(/^\//, ""), file)];
  }
  const found: Chosen<File>[] = [];
  for (const child of await childrenOf(entry as FileSystemDirectoryEntry)) found.push(...(await inside(child)));
  return found;
}

async function childrenOf(folder: FileSystemDirectoryEntry): Promise<FileSystemEntry[]> {
  const reader = folder.createReader();
  const children: FileSystemEntry[] = [];
  for (;;) {
    // A browser lists a hundred at a time.
    const some = await new Promise<FileSystemEntry[]>((take, refuse) => reader.readEntries(take, refuse));
    if (!some.length) return children;
    children.push(...some);
  }
}
