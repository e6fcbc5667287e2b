// Generated from the schema files by `make contract`: change those instead.

/** The update types, and what the data of each is. An interface, so that you can declare types of your own in it. */
export interface UpdateData {
  "entity-activity": EntityActivity;
  event: KillboardEvent;
  killmail: Killmail;
  "price-update": PriceUpdate;
  statistics: Statistics;
}

export type UpdateType = keyof UpdateData;

/** Any update: switch on its type, and its data is known. One of a type that is not here may come: ignore it. */
export type Update = { [Type in UpdateType]: UpdateOf<Type> }[UpdateType];

/** The same as a client gets it that asked for ids. */
export type UpdateWithId = { [Type in UpdateType]: UpdateWithIdOf<Type> }[UpdateType];

/** What the bridge itself tells a client that asked for ids, and the data of each. */
export interface MessageData {
  gap: Gap;
  resume: Resume;
}

export type Message = { [Type in keyof MessageData]: MessageOf<Type> }[keyof MessageData];

/** Whatever a client gets that asked for ids: switch on its type. */
export type Received = UpdateWithId | Message;

/**
 * The envelope: what every WebSocket text message of the bridge holds, but for updates to clients that asked for ids: see update-with-id.
 */
export interface UpdateOf<Type extends UpdateType> {
  /**
   * The update type: the name of the schema file that describes data.
   */
  type: Type;
  /**
   * The update itself, as the schema of its type says.
   */
  data: UpdateData[Type];
  /**
   * When the update was sent, in milliseconds since 1970-01-01T00:00:00Z.
   */
  timestamp: number;
}

/**
 * The envelope of an update as clients get it that asked for ids (?after=): the id is its fourth member, and the last.
 */
export interface UpdateWithIdOf<Type extends UpdateType> extends UpdateOf<Type> {
  /**
   * What the update is known by, to be given back in after. Of no meaning to a client: neither its order nor its parts say anything.
   */
  id: string;
}

/**
 * The envelope: what every WebSocket text message of the bridge holds, but for updates to clients that asked for ids: see update-with-id.
 */
export interface MessageOf<Type extends keyof MessageData> {
  /**
   * The update type: the name of the schema file that describes data.
   */
  type: Type;
  /**
   * The update itself, as the schema of its type says.
   */
  data: MessageData[Type];
  /**
   * When the update was sent, in milliseconds since 1970-01-01T00:00:00Z.
   */
  timestamp: number;
}

/**
 * The data of an update of the type entity-activity: what one character, corporation, alliance or place did or suffered in a period. Each update replaces the one before it for the same entity and period.
 */
export interface EntityActivity {
  /**
   * When the update was sent: an RFC 3339 date-time with upper-case T and Z. Not the time of what it tells of.
   */
  timestamp: string;
  /**
   * What kind of entity entityId names.
   */
  entityType: "character" | "corporation" | "alliance" | "faction" | "shipType" | "system" | "constellation" | "region";
  /**
   * The entity's id, as ESI knows it for its kind.
   */
  entityId: number;
  /**
   * The first moment of the period, in EVE time (UTC): an RFC 3339 date-time with upper-case T and Z.
   */
  periodStart: string;
  /**
   * The end of the period, which is no part of it: an RFC 3339 date-time with upper-case T and Z. A running period ends in the future.
   */
  periodEnd: string;
  /**
   * How many killmails of the period name the entity among the attackers (for a place: how many happened there).
   */
  killCount: number;
  /**
   * How many killmails of the period name the entity as the victim; 0 for a place.
   */
  lossCount: number;
  /**
   * The value of what was lost on the kills, in ISK.
   */
  iskDestroyed?: number;
  /**
   * The value of what was lost on the losses, in ISK.
   */
  iskLost?: number;
  /**
   * The id of the newest killmail that was counted; left out, null or 0 where there is none.
   */
  lastKillmailId?: number | null;
  /**
   * The id of the solar system of that killmail; left out, null or 0 where there is none.
   */
  lastSystemId?: number | null;
  /**
   * The time of that kill, in EVE time (UTC): an RFC 3339 date-time with upper-case T and Z.
   */
  lastActivityTime?: string;
}

/**
 * A raw killmail, as EVE's ESI gives it (GET /killmails/{killmail_id}/{killmail_hash}/). The bridge makes an update of the type killmail of it, and requires what it needs for that; everything else may be missing.
 */
export interface EsiKillmail {
  /**
   * The killmail's id; becomes killmailId.
   */
  killmail_id: number;
  /**
   * When the ship was lost, in EVE time (UTC): an RFC 3339 date-time with upper-case T and Z; becomes killmailTime. ESI always gives it.
   */
  killmail_time?: string;
  /**
   * The killmail's hash. ESI does not repeat it; some fetchers add it.
   */
  killmail_hash?: string | null;
  /**
   * The id of the solar system; becomes systemId.
   */
  solar_system_id: number;
  /**
   * The id of the moon, where it happened at one.
   */
  moon_id?: number | null;
  /**
   * The id of the war, where it is part of one.
   */
  war_id?: number | null;
  /**
   * Who lost what.
   */
  victim: {
    /**
     * The victim's character id; a structure has none. Becomes victimId, as it is.
     */
    character_id?: number | null;
    /**
     * The victim's corporation id; becomes victimCorporationId, as it is.
     */
    corporation_id?: number | null;
    /**
     * The victim's alliance id; becomes victimAllianceId, as it is.
     */
    alliance_id?: number | null;
    /**
     * The victim's faction id.
     */
    faction_id?: number | null;
    /**
     * The type id of the ship that was lost; becomes shipTypeId.
     */
    ship_type_id: number;
    /**
     * The damage that was done to the victim, in hit points.
     */
    damage_taken?: number | null;
    /**
     * What the ship carried, as ESI lists it; not read by the bridge.
     */
    items?: unknown;
    /**
     * Where in the solar system, in metres from its star; not read by the bridge.
     */
    position?: unknown;
  };
  /**
   * Everybody who took part; their number becomes attackerCount.
   *
   * Items: One attacker: a character, or an NPC.
   */
  attackers: {
    /**
     * The attacker's character id; none for an NPC.
     */
    character_id?: number | null;
    /**
     * The attacker's corporation id.
     */
    corporation_id?: number | null;
    /**
     * The attacker's alliance id.
     */
    alliance_id?: number | null;
    /**
     * The attacker's faction id.
     */
    faction_id?: number | null;
    /**
     * The damage that this attacker did, in hit points.
     */
    damage_done?: number | null;
    /**
     * Whether this attacker did the last of it.
     */
    final_blow?: boolean | null;
    /**
     * The attacker's security status, -10 to 10.
     */
    security_status?: number | null;
    /**
     * The type id of the attacker's ship.
     */
    ship_type_id?: number | null;
    /**
     * The type id of the attacker's weapon.
     */
    weapon_type_id?: number | null;
  }[];
  /**
   * What zKillboard adds: the hash, values in ISK, points, labels and more. Not read by the bridge, and of any shape.
   */
  zkb?: unknown;
}

/**
 * The data of an update of the type event: something that the killboard has to say and that is no killmail: a battle that it found, a campaign that began, maintenance.
 */
export interface KillboardEvent {
  /**
   * What identifies the event, in its publisher's own way. A later update with the same id is a correction: it replaces the earlier one. News of the same matter are an event of their own, with relatedEventId.
   */
  eventId: string;
  /**
   * When the update was sent: an RFC 3339 date-time with upper-case T and Z. Not the time of what it tells of.
   */
  timestamp: string;
  /**
   * What kind of event it is, as a slug: battle, campaign or maintenance, say. New kinds may come at any time: ignore those that you do not know.
   */
  kind: string;
  /**
   * What happened, in one line of plain text, for people.
   */
  title: string;
  /**
   * The same at length, in plain text.
   */
  message?: string;
  /**
   * Where there is more about it: an absolute http or https URL, in ASCII.
   */
  url?: string;
  /**
   * When it began or will begin, in EVE time (UTC): an RFC 3339 date-time with upper-case T and Z.
   */
  startTime?: string;
  /**
   * When it ended or will end, in EVE time (UTC): an RFC 3339 date-time with upper-case T and Z.
   */
  endTime?: string;
  /**
   * The id of the solar system where it happens; left out, null or 0 where it is no one place.
   */
  systemId?: number | null;
  /**
   * The killmails that belong to it.
   *
   * @maxItems 10000
   *
   * Items: A killmail's id.
   */
  killmailIds?: number[];
  /**
   * The eventId of the event that this one continues.
   */
  relatedEventId?: string;
}

/**
 * The data of a message to clients that asked for ids (?after=): the bridge itself may have missed events in this time, and no resuming brings them back.
 */
export interface Gap {
  /**
   * The last moment at which nothing was missed: an RFC 3339 date-time with upper-case T and Z.
   */
  since: string;
  /**
   * Since when nothing is missed again: an RFC 3339 date-time with upper-case T and Z.
   */
  until: string;
  /**
   * What happened: broker-away (the bridge had no broker), stream-truncated (RabbitMQ dropped events before the bridge read them) or stream-recreated (the stream was deleted and made again). There may be more later.
   */
  reason: string;
}

/**
 * The data of an update of the type killmail: sent when a new killmail has been fetched and processed.
 */
export interface Killmail {
  /**
   * The killmail's id, as ESI and zKillboard know it. It identifies the update: a second one with the same id is not sent again.
   */
  killmailId: number;
  /**
   * When the update was sent: an RFC 3339 date-time with upper-case T and Z. Not the time of the kill, which is killmailTime.
   */
  timestamp: string;
  /**
   * The victim's character id. A structure has none: left out, null or 0.
   */
  victimId?: number | null;
  /**
   * The victim's corporation id; left out, null or 0 where there is none.
   */
  victimCorporationId?: number | null;
  /**
   * The victim's alliance id; left out, null or 0 where the corporation is in no alliance.
   */
  victimAllianceId?: number | null;
  /**
   * The id of the solar system in which the ship was lost.
   */
  systemId: number;
  /**
   * The type id of the ship (or structure, deployable, ...) that was lost.
   */
  shipTypeId: number;
  /**
   * How many attackers the killmail names, NPCs included.
   */
  attackerCount: number;
  /**
   * When the ship was lost, in EVE time (UTC): an RFC 3339 date-time with upper-case T and Z. An extension: updates made from a raw killmail have it, others may.
   */
  killmailTime?: string;
}

/**
 * The data of an update of the type price-update: a new price of one type of item, as the killboard values killmails with.
 */
export interface PriceUpdate {
  /**
   * When the update was sent: an RFC 3339 date-time with upper-case T and Z. Not the time of what it tells of.
   */
  timestamp: string;
  /**
   * The type id of the item.
   */
  typeId: number;
  /**
   * The new price of one unit, in ISK.
   */
  price: number;
  /**
   * The price of one unit that held before, in ISK; left out or null where none was known.
   */
  previousPrice?: number | null;
  /**
   * The id of the region whose market the price is of; left out, null or 0 for a price of the whole of New Eden.
   */
  regionId?: number | null;
  /**
   * Since when the price holds, in EVE time (UTC): an RFC 3339 date-time with upper-case T and Z.
   */
  priceTime?: string;
  /**
   * Where the price comes from, in a word: esi-average, say, or jita-sell.
   */
  source?: string;
}

/**
 * A document of zKillboard's R2Z2 (ephemeral/<sequence>.json). The bridge makes an update of the type killmail of it. Where esi is null or empty, it is rejected as a placeholder.
 */
export interface R2Z2Document {
  /**
   * The killmail's id as R2Z2 says it; the one in esi counts.
   */
  killmail_id?: unknown;
  /**
   * The killmail's hash.
   */
  hash?: unknown;
  esi: EsiKillmail;
  /**
   * What zKillboard adds: the hash, values in ISK, points, labels and more. Not read by the bridge, and of any shape.
   */
  zkb?: unknown;
  /**
   * When zKillboard made the document, in Unix seconds.
   */
  uploaded_at?: unknown;
  /**
   * The document's place in the sequence of all documents.
   */
  sequence_id?: unknown;
}

/**
 * A package of zKillboard's RedisQ: the content of {"package": ...}, which the bridge takes with or without that around it, and makes an update of the type killmail of. A package without its killmail can't become an update: it is rejected as a placeholder.
 */
export interface RedisqPackage {
  /**
   * The killmail's id as RedisQ says it; the one in killmail counts.
   */
  killID?: unknown;
  killmail: EsiKillmail;
  /**
   * What zKillboard adds: the hash, values in ISK, points, labels and more. Not read by the bridge, and of any shape.
   */
  zkb?: unknown;
}

/**
 * The data of the first message to a client that asked for ids (?after=): where in the stream of updates it is. What comes after data.id follows.
 */
export interface Resume {
  /**
   * Whether everything after the id that the client gave follows. False where that id is unknown or older than what is kept: what is kept follows then (but for the oldest of it, which may be gone by then), and what was before that is lost to the client.
   */
  complete: boolean;
  /**
   * How many of the updates that follow were sent before the client came.
   */
  replayed: number;
  /**
   * From now on the id to give in after, until an update brings the next one.
   */
  id: string;
}

/**
 * The data of an update of the type statistics: what happened on the whole killboard in a period, as its front page shows it. Each update replaces the one before it for the same period.
 */
export interface Statistics {
  /**
   * When the update was sent: an RFC 3339 date-time with upper-case T and Z. Not the time of what it tells of.
   */
  timestamp: string;
  /**
   * The first moment of the period, in EVE time (UTC): an RFC 3339 date-time with upper-case T and Z.
   */
  periodStart: string;
  /**
   * The end of the period, which is no part of it: an RFC 3339 date-time with upper-case T and Z. A running period ends in the future.
   */
  periodEnd: string;
  /**
   * How many killmails there are of the period: those whose kill is in it.
   */
  killmailCount: number;
  /**
   * Of these, killmails with a single attacker that is a player.
   */
  soloKillmailCount?: number;
  /**
   * Of these, killmails whose attackers are all NPCs.
   */
  npcKillmailCount?: number;
  /**
   * The value of all ships and cargo that were destroyed, in ISK.
   */
  iskDestroyed?: number;
  /**
   * The value of all cargo that survived, in ISK.
   */
  iskDropped?: number;
  /**
   * How many different characters were a victim or an attacker.
   */
  activePilotCount?: number;
  /**
   * The characters with the most killmails in the period, most first.
   *
   * @maxItems 100
   *
   * Items: One entry of the list.
   */
  topCharacters?: {
    /**
     * The character's id.
     */
    id: number;
    /**
     * How many killmails of the period it has a part in.
     */
    killmailCount: number;
    /**
     * The value of what was lost on them, in ISK.
     */
    iskDestroyed?: number;
  }[];
  /**
   * The corporations with the most killmails in the period, most first.
   *
   * @maxItems 100
   *
   * Items: One entry of the list.
   */
  topCorporations?: {
    /**
     * The corporation's id.
     */
    id: number;
    /**
     * How many killmails of the period it has a part in.
     */
    killmailCount: number;
    /**
     * The value of what was lost on them, in ISK.
     */
    iskDestroyed?: number;
  }[];
  /**
   * The alliances with the most killmails in the period, most first.
   *
   * @maxItems 100
   *
   * Items: One entry of the list.
   */
  topAlliances?: {
    /**
     * The alliance's id.
     */
    id: number;
    /**
     * How many killmails of the period it has a part in.
     */
    killmailCount: number;
    /**
     * The value of what was lost on them, in ISK.
     */
    iskDestroyed?: number;
  }[];
  /**
   * The types of ship lost with the most killmails in the period, most first.
   *
   * @maxItems 100
   *
   * Items: One entry of the list.
   */
  topShipTypes?: {
    /**
     * The type's id.
     */
    id: number;
    /**
     * How many killmails of the period it has a part in.
     */
    killmailCount: number;
    /**
     * The value of what was lost on them, in ISK.
     */
    iskDestroyed?: number;
  }[];
  /**
   * The solar systems with the most killmails in the period, most first.
   *
   * @maxItems 100
   *
   * Items: One entry of the list.
   */
  topSystems?: {
    /**
     * The solar system's id.
     */
    id: number;
    /**
     * How many killmails of the period it has a part in.
     */
    killmailCount: number;
    /**
     * The value of what was lost on them, in ISK.
     */
    iskDestroyed?: number;
  }[];
}
