// Generated from the schema files by `make contract`. Change the schema files instead.

/** The update types, each with its data. UpdateData is an interface: you can declare your own types in it. */
export interface UpdateData {
  "entity-activity": EntityActivity;
  event: KillboardEvent;
  killmail: Killmail;
  "price-update": PriceUpdate;
  statistics: Statistics;
}

export type UpdateType = keyof UpdateData;

/** The bridge's own messages to clients with ids, each with its data. */
export interface MessageData {
  close: Close;
  gap: Gap;
  heartbeat: Heartbeat;
  resume: Resume;
}

export type MessageType = keyof MessageData;

/** A type that is not declared here: a string, but none of the declared types. This enumeration exists only as a type. */
declare enum UnknownType {
  UNKNOWN = "a type that is not declared here",
}

export type UpdateOf<Type extends UpdateType> = Envelope<Type, UpdateData[Type]>;
export type UpdateWithIdOf<Type extends UpdateType> = EnvelopeWithId<Type, UpdateData[Type]>;
export type MessageOf<Type extends MessageType> = MessageEnvelope<Type, MessageData[Type]>;

/** An update of a type that is not declared here. Ignore it. */
export type UnknownUpdate = Envelope<UnknownType, unknown>;
export type UnknownUpdateWithId = EnvelopeWithId<UnknownType, unknown>;

/** An own message of a type that is not declared here. If its data has an id, adopt this id. Otherwise, ignore it. */
export type UnknownMessage = MessageEnvelope<UnknownType, { id?: string; [member: string]: unknown }>;

/** Any update. In a switch on the type, each case narrows the data, and the default is an unknown update. */
export type Update = { [Type in UpdateType]: UpdateOf<Type> }[UpdateType] | UnknownUpdate;

/** Any update for clients with ids. */
export type UpdateWithId = { [Type in UpdateType]: UpdateWithIdOf<Type> }[UpdateType] | UnknownUpdateWithId;

/** Any own message. */
export type Message = { [Type in MessageType]: MessageOf<Type> }[MessageType] | UnknownMessage;

/** Any message to clients with ids. The member id tells an update from an own message, which has none. */
export type Received = UpdateWithId | Message;

/** The envelope of the bridge's own messages. */
export interface MessageEnvelope<Type, Data> extends Envelope<Type, Data> {
  id?: undefined;
}

/**
 * The envelope of every WebSocket text message. Updates to clients with ids have another envelope: update-with-id. Over Server-Sent Events, only the bridge's own messages have this envelope.
 */
export interface Envelope<Type, Data> {
  /**
   * The update type: the name of the schema file that describes data.
   */
  type: Type;
  /**
   * The data of the update. The schema of the update's type describes it.
   */
  data: Data;
  /**
   * The time when the bridge sent the update, in milliseconds since 1970-01-01T00:00:00Z.
   */
  timestamp: number;
}

/**
 * The envelope of updates to clients with ids (?after=, Server-Sent Events, or JSON). The id is the fourth and last member.
 */
export interface EnvelopeWithId<Type, Data> extends Envelope<Type, Data> {
  /**
   * The id of the update, to pass as after. The id is opaque: its order and its parts have no meaning for clients.
   */
  id: string;
}

/**
 * The data of the only message to a client of Server-Sent Events that the bridge can't serve: the body of the response ends after the message, and EventSource reconnects later. Over WebSocket, a close frame has the code and the reason.
 */
export interface Close {
  /**
   * The close code, as over WebSocket: 1001 (the bridge is stopping) or 1013 (the bridge is full). More codes may be added.
   */
  code: number;
  /**
   * The reason as a sentence for people.
   */
  reason: string;
}

/**
 * The data of an update of the type entity-activity: the kills and losses of one character, corporation, alliance or place in a period. An update replaces the previous one for the same entity and period.
 */
export interface EntityActivity {
  /**
   * The time when the publisher sent the data: an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. The timestamp is not the time that the data is about.
   */
  timestamp: string;
  /**
   * The kind of entity that entityId identifies, in camelCase: character, corporation, alliance, faction, shipType, system, constellation or region. New kinds may be added at any time: ignore unknown kinds.
   */
  entityType: string;
  /**
   * The entity's id in ESI.
   */
  entityId: number;
  /**
   * The start of the period, which includes this moment, in EVE time (UTC): an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00.
   */
  periodStart: string;
  /**
   * The end of the period, which excludes this moment: an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. A period that is not over ends in the future.
   */
  periodEnd: string;
  /**
   * The number of killmails in the period that name the entity among the attackers. For a place, the number of killmails there.
   */
  killCount: number;
  /**
   * The number of killmails in the period that name the entity as the victim. A place has 0 losses.
   */
  lossCount: number;
  /**
   * The value destroyed in the kills, in ISK.
   */
  iskDestroyed?: number;
  /**
   * The value destroyed in the losses, in ISK.
   */
  iskLost?: number;
  /**
   * The id of the newest counted killmail. Absent, null or 0 if no killmail is counted.
   */
  lastKillmailId?: number | null;
  /**
   * The id of the solar system of the newest counted killmail. Absent, null or 0 if no killmail is counted.
   */
  lastSystemId?: number | null;
  /**
   * The time of the newest counted killmail, in EVE time (UTC): an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00.
   */
  lastActivityTime?: string;
}

/**
 * The data of an update of the type event: news from the killboard other than a killmail, such as a battle, a campaign or maintenance.
 */
export interface KillboardEvent {
  /**
   * The id of the event, in any form that the publisher chooses. A later update with the same id is a correction, which replaces the earlier update. A later development is a separate event, with relatedEventId.
   */
  eventId: string;
  /**
   * The time when the publisher sent the data: an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. The timestamp is not the time that the data is about.
   */
  timestamp: string;
  /**
   * The kind of event, as a slug, such as battle, campaign or maintenance. New kinds may be added at any time: ignore unknown kinds.
   */
  kind: string;
  /**
   * The headline, as one line of plain text.
   */
  title: string;
  /**
   * The complete text, as plain text.
   */
  message?: string;
  /**
   * A page about the event: an absolute http or https URL, in ASCII.
   */
  url?: string;
  /**
   * The time when the event began or will begin, in EVE time (UTC): an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00.
   */
  startTime?: string;
  /**
   * The time when the event ended or will end, in EVE time (UTC): an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00.
   */
  endTime?: string;
  /**
   * The id of the solar system of the event. Absent, null or 0 if the event has no single place.
   */
  systemId?: number | null;
  /**
   * The ids of the killmails that belong to the event.
   *
   * @maxItems 10000
   *
   * Items: A killmail's id.
   */
  killmailIds?: number[];
  /**
   * The eventId of the event that this event continues.
   */
  relatedEventId?: string;
}

/**
 * The data of a message to clients with ids (?after=, or Server-Sent Events): the bridge itself may have missed events in this period. Filters do not hide a gap. Clients can't get these events by resuming.
 */
export interface Gap {
  /**
   * The start of the gap: an RFC 3339 date-time with upper-case T and Z. The bridge missed no event before this time.
   */
  since: string;
  /**
   * The end of the gap: an RFC 3339 date-time with upper-case T and Z. The bridge missed no event after this time.
   */
  until: string;
  /**
   * The reason: broker-away (the bridge had no broker), stream-truncated (RabbitMQ dropped events before the bridge read them) or stream-recreated (the stream was deleted and declared again). More reasons may be added.
   */
  reason: string;
  /**
   * The id to pass as after, until another message has an id. A client that resumes after this id does not receive the gap again. The id is opaque: its order and its parts have no meaning for clients.
   */
  id: string;
}

/**
 * The data of a message to clients with ids (?after=, or Server-Sent Events): the connection works. A heartbeat follows a replay, and then each BRIDGE_HEARTBEAT_INTERVAL (30 s) in which the client received no update and no other message.
 */
export interface Heartbeat {
  /**
   * The id to pass as after, until another message has an id. Everything up to this id was delivered to the client, or does not match its filter. The id is opaque: its order and its parts have no meaning for clients.
   */
  id: string;
  /**
   * Whether the bridge has a working broker at this moment.
   */
  consuming: boolean;
}

/**
 * The data of an update of the type killmail. The update is sent when a new killmail has been fetched and processed.
 */
export interface Killmail {
  /**
   * The killmail's id in ESI and zKillboard. This id identifies the update: the bridge does not send a second update with the same id.
   */
  killmailId: number;
  /**
   * The time when the publisher sent the data, or when the bridge converted it from a raw killmail: an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. The timestamp is not the time of the kill, which is in killmailTime, an optional member.
   */
  timestamp: string;
  /**
   * The victim's character id. Absent, null or 0 for a structure.
   */
  victimId?: number | null;
  /**
   * The victim's corporation id. Absent, null or 0 if the victim has no corporation.
   */
  victimCorporationId?: number | null;
  /**
   * The victim's alliance id. Absent, null or 0 if the corporation is in no alliance.
   */
  victimAllianceId?: number | null;
  /**
   * The id of the solar system where the ship was lost.
   */
  systemId: number;
  /**
   * The type id of the lost ship, structure or deployable.
   */
  shipTypeId: number;
  /**
   * The number of attackers in the killmail, including NPCs.
   */
  attackerCount: number;
  /**
   * The time when the ship was lost, in EVE time (UTC): an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. This member is an extension: updates from a raw killmail have it, and other updates may have it.
   */
  killmailTime?: string;
}

/**
 * The data of an update of the type price-update: a new price of one type of item. The killboard uses this price to value killmails.
 */
export interface PriceUpdate {
  /**
   * The time when the publisher sent the data: an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. The timestamp is not the time that the data is about.
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
   * The previous price of one unit, in ISK. Absent or null if the previous price is unknown.
   */
  previousPrice?: number | null;
  /**
   * The id of the market's region. Absent, null or 0 if the price applies to all of New Eden.
   */
  regionId?: number | null;
  /**
   * The time when the price became valid, in EVE time (UTC): an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00.
   */
  priceTime?: string;
  /**
   * The source of the price, such as esi-average or jita-sell.
   */
  source?: string;
}

/**
 * The data of the first message to a client with ids (?after=, or Server-Sent Events). The message says where the updates start: the updates after data.id follow.
 */
export interface Resume {
  /**
   * Whether all updates after the client's id follow. False if the client's id is unknown, or older than the update log. The update log then follows, except a margin of the oldest updates. If the request has last, only the newest matching updates follow. The client misses the earlier updates. True if the request has no id.
   */
  complete: boolean;
  /**
   * The number of following updates that are older than this connection.
   */
  replayed: number;
  /**
   * The id to pass as after, until another message has an id. No update from before this id follows. The id is opaque: its order and its parts have no meaning for clients.
   */
  id: string;
}

/**
 * The data of an update of the type statistics: the statistics of the whole killboard in a period, for its front page. An update replaces the previous one for the same period.
 */
export interface Statistics {
  /**
   * The time when the publisher sent the data: an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. The timestamp is not the time that the data is about.
   */
  timestamp: string;
  /**
   * The start of the period, which includes this moment, in EVE time (UTC): an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00.
   */
  periodStart: string;
  /**
   * The end of the period, which excludes this moment: an RFC 3339 date-time with upper-case T, and Z or an offset such as +02:00. A period that is not over ends in the future.
   */
  periodEnd: string;
  /**
   * The number of killmails whose kill is in the period.
   */
  killmailCount: number;
  /**
   * The number of killmails in the period with a single attacker, who is a player.
   */
  soloKillmailCount?: number;
  /**
   * The number of killmails in the period whose attackers are all NPCs.
   */
  npcKillmailCount?: number;
  /**
   * The value of all destroyed ships and cargo, in ISK.
   */
  iskDestroyed?: number;
  /**
   * The value of all cargo that survived, in ISK.
   */
  iskDropped?: number;
  /**
   * The number of different characters that were a victim or an attacker.
   */
  activePilotCount?: number;
  /**
   * The characters with the most killmails in the period, in descending order.
   *
   * @maxItems 100
   *
   * Items: An entry of the list.
   */
  topCharacters?: {
    /**
     * The character's id.
     */
    id: number;
    /**
     * The number of killmails in the period that involve the character.
     */
    killmailCount: number;
    /**
     * The value destroyed in the killmails of this entry, in ISK.
     */
    iskDestroyed?: number;
  }[];
  /**
   * The corporations with the most killmails in the period, in descending order.
   *
   * @maxItems 100
   *
   * Items: An entry of the list.
   */
  topCorporations?: {
    /**
     * The corporation's id.
     */
    id: number;
    /**
     * The number of killmails in the period that involve the corporation.
     */
    killmailCount: number;
    /**
     * The value destroyed in the killmails of this entry, in ISK.
     */
    iskDestroyed?: number;
  }[];
  /**
   * The alliances with the most killmails in the period, in descending order.
   *
   * @maxItems 100
   *
   * Items: An entry of the list.
   */
  topAlliances?: {
    /**
     * The alliance's id.
     */
    id: number;
    /**
     * The number of killmails in the period that involve the alliance.
     */
    killmailCount: number;
    /**
     * The value destroyed in the killmails of this entry, in ISK.
     */
    iskDestroyed?: number;
  }[];
  /**
   * The lost ship types with the most killmails in the period, in descending order.
   *
   * @maxItems 100
   *
   * Items: An entry of the list.
   */
  topShipTypes?: {
    /**
     * The type's id.
     */
    id: number;
    /**
     * The number of killmails in the period that involve the ship type.
     */
    killmailCount: number;
    /**
     * The value destroyed in the killmails of this entry, in ISK.
     */
    iskDestroyed?: number;
  }[];
  /**
   * The solar systems with the most killmails in the period, in descending order.
   *
   * @maxItems 100
   *
   * Items: An entry of the list.
   */
  topSystems?: {
    /**
     * The solar system's id.
     */
    id: number;
    /**
     * The number of killmails in the period that involve the solar system.
     */
    killmailCount: number;
    /**
     * The value destroyed in the killmails of this entry, in ISK.
     */
    iskDestroyed?: number;
  }[];
}

/**
 * The body of the response to a request for JSON (?format=json).
 */
export interface UpdatesResponse {
  /**
   * The updates between the id in the request and the id in the response, oldest first.
   */
  updates: UpdateWithId[];
  /**
   * The gaps between the id in the request and the id in the response, oldest first.
   */
  gaps: Gap[];
  /**
   * The id to pass as after in the next request. Everything up to this id is in a response, or does not match the filter. The id is opaque: its order and its parts have no meaning for clients.
   */
  id: string;
  /**
   * Whether the response begins with the first matching update after the id in the request. False if the id is unknown, or older than the update log: the client misses updates. True if the request has no id.
   */
  complete: boolean;
  /**
   * Whether more updates may follow at once: repeat the request with the new id now, even if updates is empty.
   */
  more: boolean;
  /**
   * Whether the bridge has a working broker at this moment.
   */
  consuming: boolean;
}
